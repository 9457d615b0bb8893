"""Effects of heads: ablation, standard errors, resumption after an interruption."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visionattn  # noqa: F401  registers models
from visionattn.analysis import patching
from visionattn.analysis.effects import Effects, measure_effects, measure_set
from visionattn.analysis.head_images import HeadBatch
from visionattn.analysis.heads import change_heads, choose_heads, head_layers, replace_heads
from visionattn.analysis.outcomes import Outcomes
from visionattn.analysis.patching import Unfinished, head_means, measure_ablations
from visionattn.analysis.replay import Replay
from visionattn.errors import UserError
from visionattn.probing.classifier import ProbeClassifier
from visionattn.probing.frozen import FrozenBackbone
from visionattn.probing.heads import create_head

SMALL_SWIN = {"img_size": 56, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 16}
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit_nano_patch4_32", {"depth": 3}, 32),
    "dcal": ("dcal_vit_pico", {"depth": 2}, 32),
    "nat": ("nat_pico", {}, 32),
    "halo": ("halo_pico", {}, 32),
    "swin": ("swin_tiny_patch4_window7_224", SMALL_SWIN, 56),
}


def network_of(kind: str = "vit", num_classes: int = 5) -> nn.Module:
    """Build a small network with weights large enough for heads to matter."""
    name, kwargs, _ = NETWORKS[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **kwargs)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # the last one of each block starts at 0
    return model.eval()


def batches_of(kind: str = "vit", sizes: tuple[int, ...] = (4, 3), with_targets: bool = True) -> list[HeadBatch]:
    generator, size = torch.Generator().manual_seed(1), NETWORKS[kind][2]
    found = []
    for number, count in enumerate(sizes):
        images = torch.randn(count, 3, size, size, generator=generator)
        targets = torch.randint(5, (count,), generator=generator) if with_targets else None
        found.append(HeadBatch(images, targets, [f"{number}-{image}.png" for image in range(count)]))
    return found


def outputs_of(network: nn.Module, batches: list[HeadBatch]) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(batch.image) for batch in batches])


def losses_of(network: nn.Module, batches: list[HeadBatch]) -> Tensor:
    targets = torch.cat([batch.target for batch in batches if batch.target is not None])
    return F.cross_entropy(outputs_of(network, batches), targets, reduction="none")


def test_zero_ablation_is_a_projection_without_that_slice() -> None:
    network, batches = network_of(), batches_of()
    layers = head_layers(network)
    width = layers[1].proj.in_features // layers[1].num_heads  # type: ignore[union-attr, operator]
    cut = copy.deepcopy(network)
    cut.blocks[1].attn.proj.weight.data[:, 2 * width : 3 * width] = 0
    outcomes = measure_ablations(network, layers, [(), [(1, 2)]], batches, ablation="zero")
    torch.testing.assert_close(outcomes.values[0, 1], losses_of(cut, batches).double(), rtol=0, atol=1e-6)
    assert (outcomes.changes[0, 1].abs() > 1e-3).any()


def test_mean_ablation_of_all_heads_is_a_constant_branch() -> None:
    network, batches = network_of(), batches_of()
    layers = head_layers(network)
    inputs: list[Tensor] = []
    handle = network.blocks[1].attn.proj.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    outputs_of(network, batches)
    handle.remove()
    mean = torch.cat(inputs).double().mean((0, 1))

    class Constant(nn.Module):
        def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
            return network.blocks[1].attn.proj(mean.float()).expand_as(x)

    cut = copy.deepcopy(network)
    cut.blocks[1].attn = Constant()
    means = head_means(network, layers, batches)
    torch.testing.assert_close(means[1].flatten(), mean, rtol=1e-12, atol=1e-12)
    outcomes = measure_ablations(network, layers, [(), layers[1].heads], batches, means=means)
    torch.testing.assert_close(outcomes.values[0, 1], losses_of(cut, batches).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", NETWORKS)
def test_effects_equal_those_of_whole_passes(kind: str) -> None:
    network, batches = network_of(kind), batches_of(kind, (3, 2))
    layers = head_layers(network)
    heads = choose_heads(layers, (0, -1), (0, 1))
    means = head_means(network, layers, batches)
    effects = measure_effects(network, layers, heads, batches, means=means)
    targets = torch.cat([batch.target for batch in batches if batch.target is not None])
    before, right = losses_of(network, batches).numpy(), outputs_of(network, batches).argmax(1) == targets
    assert effects.baseline == pytest.approx({"loss": before.mean(), "top1": right.float().mean().item()}, abs=1e-5)
    for head, found in effects.values().items():
        with change_heads({layers[head[0]]: replace_heads([head[1]], means[head[0]])}):
            after, still = losses_of(network, batches).numpy(), outputs_of(network, batches).argmax(1) == targets
        differences, flips = (after - before).astype(float), still.double().numpy() - right.double().numpy()
        expected = {
            "d_loss": differences.mean(),
            "d_loss_se": np.sqrt(((differences - differences.mean()) ** 2).sum() / 4 / 5),
            "d_top1": flips.mean(),
            "d_top1_se": flips.std(ddof=1) / np.sqrt(5),
        }
        assert found == pytest.approx(expected, abs=2e-6)
        assert abs(expected["d_loss"]) > 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"reg_tokens": 2, "no_embed_class": True},
        {"fc_norm": True, "final_norm": False},
        {"qk_norm": True, "scale_attn_norm": True, "init_values": 0.5, "pre_norm": True},
        {"global_pool": "avg"},
        {"global_pool": "map"},
        {"gated": True},
    ],
    ids=" ".join,
)
def test_last_block_of_a_vit_is_that_of_whole_passes(options: dict[str, Any]) -> None:
    built = {name: value for name, value in options.items() if name != "gated"}
    network = timm.create_model("vit_nano_patch4_32", num_classes=5, depth=2, **built).eval()
    if "gated" in options:  # no model of timm's has the gate that its attention allows
        for block in network.blocks:
            block.attn.gate = nn.Linear(96, 96)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    layers, (batch,) = head_layers(network), batches_of(sizes=(2,))
    edits = {layers[0]: replace_heads([1], 0.0)}
    replay = Replay(network, layers)
    with torch.no_grad():
        before = replay.record(batch.image)
        found = replay.run(batch.image, edits)
        with change_heads(edits):
            expected = network(batch.image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected - before).abs().max() > 1e-3


def test_set_of_heads_is_ablated_at_once() -> None:
    network, batches = network_of(), batches_of()
    layers = head_layers(network)
    found = measure_set(network, layers, [(2, 1), (0, 0), (0, 1)], batches, ablation="zero")
    with change_heads({layers[0]: replace_heads([0, 1], 0.0), layers[2]: replace_heads([1], 0.0)}):
        after = losses_of(network, batches)
    assert found["loss"] == pytest.approx(after.mean().item(), abs=1e-6)
    assert found["d_loss"] == pytest.approx((after - losses_of(network, batches)).mean().item(), abs=1e-6)


def test_features_move_by_a_relative_distance() -> None:
    network, batches = network_of(num_classes=0), batches_of(with_targets=False)
    layers = head_layers(network)
    effects = measure_effects(network, layers, [(1, 0)], batches, ablation="zero")
    before = outputs_of(network, batches)
    with change_heads({layers[1]: replace_heads([0], 0.0)}):
        after = outputs_of(network, batches)
    distances = (after - before).norm(dim=1) / before.norm(dim=1)
    expected = {"d_features": distances.mean().item(), "d_features_se": (distances.std() / 7**0.5).item()}
    assert effects.values() == {(1, 0): pytest.approx(expected, rel=1e-4)}
    assert effects.baseline == {}


def test_heads_after_the_last_layer_of_a_probe_have_no_effect() -> None:
    torch.manual_seed(0)
    backbone = FrozenBackbone(
        timm.create_model("vit_nano_patch4_32", num_classes=0, depth=3), "vit_nano_patch4_32", [1]
    )
    network = ProbeClassifier(backbone, create_head("linear", 96, 5), [1], list("abcde")).eval()
    network.head.classifier.weight.data *= 50
    layers, batches = head_layers(network), batches_of()
    values = measure_effects(
        network, layers, choose_heads(layers), batches, means=head_means(network, layers, batches)
    ).values()
    assert {head for head, found in values.items() if found["d_loss"] == 0} == set(layers[2].heads)


def test_bfloat16_is_near() -> None:
    network, batches = network_of(), batches_of()
    layers = head_layers(network)
    exact, rounded = (
        measure_effects(network, layers, [(1, 0)], batches, ablation="zero", precision=precision).outcomes.values[0]
        for precision in ("32-true", "bf16-mixed")
    )
    assert 0 < (exact - rounded).abs().max() < 0.1


def test_split_half_correlates_ranks_of_heads() -> None:
    changes = torch.zeros(2, 5, 6)
    changes[0, 1:, ::2] = torch.tensor([0.1, 0.2, 0.3, 9.0])[:, None]
    changes[0, 1:, 1::2] = torch.tensor([1.0, 3.0, 2.0, 4.0])[:, None]
    assert Effects([(0, head) for head in range(4)], Outcomes(changes)).split_half == pytest.approx(0.8)
    assert Effects([(0, 0)], Outcomes(changes[:, :2])).split_half is None
    assert Effects([(0, head) for head in range(4)], Outcomes(changes[:, :, :1])).split_half is None


def test_one_image_has_no_standard_error() -> None:
    network = network_of()
    values = measure_effects(network, head_layers(network), [(0, 0)], batches_of(sizes=(1,)), ablation="zero").values()
    assert values[0, 0]["d_loss_se"] is None


def test_output_that_is_not_finite_names_the_image() -> None:
    network, batches = network_of(), batches_of()
    batches[1].image[2, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"no finite numbers for 1-2\.png: compute with --precision 32-true"):
        measure_effects(network, head_layers(network), [(0, 0)], batches, ablation="zero")


def test_no_images_are_an_error() -> None:
    network = network_of()
    layers = head_layers(network)
    with pytest.raises(UserError, match="there are no images"):
        measure_effects(network, layers, [(0, 0)], [], ablation="zero")
    with pytest.raises(UserError, match="there are no images"):
        head_means(network, layers, [])


@contextmanager
def interrupted_after(passes: int, network: nn.Module) -> Iterator[None]:
    """Raise an error in the pass after some passes of a network."""
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        if done > passes:
            raise InterruptedError

    handle = network.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def saved_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "SAVE_SECONDS", 0.0)


@pytest.mark.usefixtures("saved_always")
@pytest.mark.parametrize("passes", [2, 5, 6, 12])  # in the first batch, after it, in the second, in the third
def test_resumed_outcomes_are_equal_bitwise(tmp_path: Path, passes: int) -> None:
    network, batches = network_of(), batches_of(sizes=(4, 4, 2))
    layers = head_layers(network)
    heads = [(0, 0), (1, 1), (2, 0), (2, 1)]
    means = head_means(network, layers, batches)
    whole = measure_effects(network, layers, heads, batches, means=means)
    unfinished = Unfinished(tmp_path / "new" / "effects.safetensors", "weights, images")
    with interrupted_after(passes, network), pytest.raises(InterruptedError):
        measure_effects(network, layers, heads, batches, means=means, unfinished=unfinished)
    left = 15 - passes + (passes % 5 > 0)  # the recorded pass of an unfinished batch is repeated
    with interrupted_after(left, network):
        resumed = measure_effects(network, layers, heads, batches, means=means, unfinished=unfinished)
    assert torch.equal(resumed.outcomes.values, whole.outcomes.values)
    unfinished.finish()
    assert not list(unfinished.path.parent.iterdir())


@pytest.mark.usefixtures("saved_always")
def test_another_measurement_starts_from_its_beginning(tmp_path: Path) -> None:
    network, batches = network_of(), batches_of()
    layers = head_layers(network)
    options: dict[str, Any] = {"ablation": "zero"}
    path = tmp_path / "effects.safetensors"
    measure_effects(network, layers, [(0, 0)], batches, unfinished=Unfinished(path, "one"), **options)
    with interrupted_after(0, network):  # everything is there
        measure_effects(network, layers, [(0, 0)], batches, unfinished=Unfinished(path, "one"), **options)
    for identity, heads in (("another", [(0, 0)]), ("one", [(0, 1)])):
        with interrupted_after(0, network), pytest.raises(InterruptedError):
            measure_effects(network, layers, heads, batches, unfinished=Unfinished(path, identity), **options)


@pytest.mark.usefixtures("saved_always")
def test_damaged_file_is_replaced_with_a_warning(tmp_path: Path) -> None:
    network, batches = network_of(), batches_of()
    layers = head_layers(network)
    unfinished = Unfinished(tmp_path / "effects.safetensors", json.dumps({"weights": "0"}))
    whole = measure_effects(network, layers, [(0, 0)], batches, ablation="zero", unfinished=unfinished)
    content = unfinished.path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"x" * 100):
        unfinished.path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"effects\.safetensors is damaged .* starts from its beginning"):
            again = measure_effects(network, layers, [(0, 0)], batches, ablation="zero", unfinished=unfinished)
        assert torch.equal(again.outcomes.values, whole.outcomes.values)
    assert unfinished.path.read_bytes() == content
