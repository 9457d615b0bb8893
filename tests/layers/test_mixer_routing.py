"""Routing attention against its equation, with dense scores and a mask per cluster; its clusters, and their updates."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.layers.test_mixers import each_size
from visionattn.layers.mixers.routing import RoutingAttention2d, attend_clusters
from visionattn.layers.neighborhood_attention import attend_neighborhood
from visionattn.layers.online_clusters import OnlineClusters
from visionattn.training.objective import extra_losses, measurements, update_buffers


def routing(**options: Any) -> RoutingAttention2d:
    torch.manual_seed(0)
    mixer = RoutingAttention2d(16, 4, **{"kernel_size": 3, "num_clusters": 4, "dtype": torch.float64, **options})
    for parameter in mixer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return mixer


def random_map(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, *size, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def clusters_of(keys: Tensor, centroids: Tensor, size: int) -> Tensor:
    """Return whether positions `[N, d]` are in each cluster, `[clusters, N]`: those of the largest products."""
    inside = torch.zeros(len(centroids), len(keys), dtype=torch.bool)
    for i, centroid in enumerate(centroids.tolist()):
        products = [sum(a * b for a, b in zip(centroid, key, strict=True)) for key in keys.tolist()]
        inside[i, sorted(range(len(keys)), key=lambda n: -products[n])[:size]] = True
    return inside


def dense(mixer: RoutingAttention2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and the loss by the equations, one head of one image after the other."""
    height, width = x.shape[1:3]
    heads, d = mixer.num_heads - mixer.local_heads, mixer.head_dim
    qkv = F.linear(x, mixer.qkv.weight, mixer.qkv.bias)
    near, routed = qkv[..., : 3 * mixer.local_heads * d], qkv[..., 3 * mixer.local_heads * d :]
    images, errors = [], []
    for image in routed:
        outs = []
        for head in range(heads):
            key, value = (image.flatten(0, 1)[:, (part * heads + head) * d :][:, :d] for part in (0, 1))
            key = (key - key.mean(1, keepdim=True)) / (key.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            centroids = mixer.clusters.totals[head, :, :-1].to(key.dtype)  # each counts as one vector
            size = min(mixer.overlap * -(-height * width // len(centroids)), height * width)
            inside = clusters_of(key, centroids, size)
            seen = inside[:, :, None] & inside[:, None, :]
            scores = (key @ key.T / d**0.5).expand(len(centroids), -1, -1).masked_fill(~seen, -torch.inf)
            weights = scores.softmax(-1).nan_to_num(0.0) / inside.sum(0).clamp(min=1)[:, None]
            outs.append((weights @ value).sum(0))
            errors.append((key - centroids[(key @ centroids.T).argmax(1)]).square().mean())
        images.append(torch.cat(outs, -1).unflatten(0, (height, width)))
    out = torch.stack(images)
    if mixer.local_heads:
        local = attend_neighborhood(near, mixer.rpb, mixer.local_heads, mixer.kernel_size, mixer.dilation)
        out = torch.cat([local, out], -1)
    return F.linear(out, mixer.proj.weight, mixer.proj.bias), 1e-4 * torch.stack(errors).mean()


@pytest.mark.parametrize("options", [{}, {"local_heads": 0, "overlap": 1}, {"local_heads": 1, "overlap": 3}], ids=str)
@each_size
def test_outputs_loss_and_gradients_are_those_of_the_equation(size: tuple[int, int], options: dict[str, Any]) -> None:
    mixer = routing(**options)
    x = random_map(*size).requires_grad_()
    found, given = [], torch.randn(2, *size, 16, dtype=torch.float64)
    for compute in (lambda: (mixer(x), extra_losses(mixer)["commitment"]), lambda: dense(mixer, x)):
        out, loss = compute()
        # The loss counts as much as the output, so that its gradients are compared to as many digits.
        grads = torch.autograd.grad((out * given).sum() + 1e4 * loss, [x, *mixer.parameters()])
        found.append([out, loss, *grads])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_permutation_of_positions_permutes_the_output() -> None:
    mixer = routing(local_heads=0).eval()
    x = random_map(6, 7)
    order = torch.randperm(42)
    shuffled = x.flatten(1, 2)[:, order].unflatten(1, (6, 7))
    expected = mixer(x).flatten(1, 2)[:, order].unflatten(1, (6, 7))
    torch.testing.assert_close(mixer(shuffled), expected, rtol=0, atol=1e-13)


def test_of_equal_vectors_the_first_are_in_a_cluster() -> None:
    members = OnlineClusters(1, 3, 4)(torch.ones(1, 1, 9, 4), 2)
    assert members.tolist() == [[[[0, 1]] * 3]]


def test_position_in_no_cluster_is_zero_and_one_in_several_the_mean() -> None:
    keys, values = torch.zeros(1, 1, 4, 2), torch.arange(8.0).reshape(1, 1, 4, 2)
    out = attend_clusters(keys, values, torch.tensor([[[[0, 1], [0, 3]]]]))[0, 0]
    a, _, _, d = values[0, 0]
    b = values[0, 0, 1]
    torch.testing.assert_close(out, torch.stack([((a + b) / 2 + (a + d) / 2) / 2, (a + b) / 2, 0 * a, (a + d) / 2]))


def test_coverage_of_random_maps() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 16, 16, 64)
    found = {}
    for overlap in (1, 2):
        mixer = RoutingAttention2d(64, 2, overlap=overlap)  # as in iso_nano
        mixer(x)
        found[overlap] = measurements(mixer)["routing_coverage"].item()
    assert found[2] >= 0.95
    assert 0.6 < found[1] < 0.85
    mixer = RoutingAttention2d(64, 2, num_clusters=1, overlap=1)
    mixer(x)
    assert measurements(mixer) == {"routing_coverage": 1.0}


def step(mixer: nn.Module, forward: Callable[[], Tensor]) -> None:
    """Take a training step without an optimizer."""
    loss = forward().square().mean()
    (loss + sum(extra_losses(mixer).values())).backward()
    update_buffers(mixer)


def test_update_moves_centroids_by_sums_and_numbers() -> None:
    torch.manual_seed(0)
    clusters = OnlineClusters(2, 3, 4, decay=0.9, dtype=torch.float64)
    sums, counts = clusters.totals[..., :-1].clone(), clusters.totals[..., -1].clone()
    torch.testing.assert_close(sums.square().sum(-1), torch.full((2, 3), 4.0, dtype=torch.float64), rtol=1e-3, atol=0)
    for _ in range(3):
        x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
        centroids = clusters.centroids.clone()
        clusters(x, 2)
        clusters.auxiliary_losses()
        torch.testing.assert_close(clusters.centroids, centroids, rtol=0, atol=0)
        clusters.update_buffers()
        sums, counts = 0.9 * sums, 0.9 * counts
        for image in x:
            for head in range(2):
                for vector in image[head]:
                    nearest = (centroids[head] @ vector).argmax()
                    sums[head, nearest] += 0.1 * vector
                    counts[head, nearest] += 0.1
        total = counts.sum(1, keepdim=True)
        smoothed = (counts + 1e-5) / (total + 3e-5) * total
        torch.testing.assert_close(clusters.centroids, sums / smoothed[..., None], rtol=1e-12, atol=0)


def test_only_a_whole_training_step_moves_centroids() -> None:
    mixer, x = routing(), random_map(6, 7)
    before = mixer.clusters.totals.clone()
    mixer(x)
    update_buffers(mixer)  # its losses were not asked for
    mixer.eval()
    mixer(x)
    assert extra_losses(mixer) == {}
    assert measurements(mixer) == {}
    update_buffers(mixer)
    assert torch.equal(mixer.clusters.totals, before)
    mixer.train()
    step(mixer, lambda: mixer(x))
    after = mixer.clusters.totals.clone()
    assert not torch.equal(after, before)
    update_buffers(mixer)
    assert torch.equal(mixer.clusters.totals, after)


def test_batches_of_one_step_add_up() -> None:
    whole, parts, x = routing(), routing(), random_map(6, 7, batch=4)
    step(whole, lambda: whole(x))
    for part in x.split(1):
        (parts(part).square().mean() + extra_losses(parts)["commitment"]).backward()
    update_buffers(parts)
    torch.testing.assert_close(parts.clusters.totals, whole.clusters.totals, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputed_activations_do_not_move_centroids_again(use_reentrant: bool) -> None:
    plain, saving, x = routing(), routing(), random_map(6, 7).requires_grad_()
    for _ in range(2):
        step(plain, lambda: plain(x))
        step(saving, lambda: checkpoint(saving, x, use_reentrant=use_reentrant))
    assert torch.equal(saving.clusters.totals, plain.clusters.totals)
    if not use_reentrant:  # of the other kind, the loss of the clusters has no gradients
        for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        assert saving.clusters._latest is None  # nothing holds recomputed activations


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_centroids_stay_in_float32(dtype: torch.dtype) -> None:
    model = nn.Sequential(routing(dtype=torch.float32))
    model.to(dtype)
    assert {x.dtype for x in model.parameters()} == {dtype}
    assert RoutingAttention2d(16, 2, dtype=dtype).clusters.totals.dtype == torch.float32
    step(model, lambda: model(random_map(6, 7).to(dtype)))
    assert model[0].clusters.totals.dtype == torch.float32


def test_autocast_does_not_round_the_assignment() -> None:
    torch.manual_seed(0)
    exact, rounded, x = OnlineClusters(2, 8, 16), OnlineClusters(2, 8, 16), torch.randn(2, 2, 64, 16)
    rounded.load_state_dict(exact.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rounded(x, 8), exact(x, 8))
        rounded.auxiliary_losses()
        rounded.update_buffers()
    exact.auxiliary_losses()
    exact.update_buffers()
    torch.testing.assert_close(rounded.totals, exact.totals, rtol=0, atol=0)


def test_state_dict_holds_the_centroids() -> None:
    mixer, x = routing(), random_map(6, 7)
    step(mixer, lambda: mixer(x))
    mixer(x)  # the graph of a forward pass hinders no copy
    copied, loaded = copy.deepcopy(mixer), RoutingAttention2d(16, 4, kernel_size=3, num_clusters=4).double()
    loaded.load_state_dict(mixer.state_dict())
    for other in (copied, loaded):
        for each in (mixer, other):
            each.eval()
        assert torch.equal(other(x), mixer(x))


@pytest.mark.slow
def test_compiled_training_moves_centroids_as_eager_training_does() -> None:
    eager, compiled, x = routing(), routing(), random_map(6, 7)
    run = torch.compile(compiled, backend="aot_eager")
    for _ in range(2):
        step(eager, lambda: eager(x))
        step(compiled, lambda: run(x))
    torch.testing.assert_close(compiled.clusters.totals, eager.clusters.totals)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_heads": 4}, "local_heads must leave a routing head: at least 0 and below num_heads, 4; got 4"),
        ({"local_heads": -1}, "at least 0 and below num_heads, 4; got -1"),
        ({"num_clusters": 0}, "num_clusters must be at least 1; got 0"),
        ({"overlap": 0}, "overlap must be at least 1; got 0"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routing(**options)
