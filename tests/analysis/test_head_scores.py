"""Scores of heads, against the definitions on weights that are computed without the recorder."""

import math
from itertools import product
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from tests.analysis.dense_attention import NETWORKS, Dense, PatchNet, build, dense_weights, vit
from visionattn.analysis import scores
from visionattn.analysis.attention import record_attention
from visionattn.analysis.head_images import HeadBatch
from visionattn.analysis.heads import head_layers
from visionattn.analysis.recorded import WindowAttention
from visionattn.analysis.scores import choose_queries, measure_scores
from visionattn.errors import UserError
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def as_batches(images: Tensor, size: int = 2) -> list[HeadBatch]:
    return [HeadBatch(part, None, [""] * len(part)) for part in images.split(size)]


def recorded_layers(network: Any, images: Tensor) -> list[Any]:
    layers = {layer.number: layer.attention for layer in head_layers(network)}
    with record_attention(layers) as found, torch.no_grad():
        network(images)
    return [found[number] for number in layers]


def places(grid: tuple[int, int]) -> Tensor:
    return torch.tensor(list(product(*map(range, grid))), dtype=torch.float64)


def assert_scores(values: dict[str, float | None], expected: dict[str, float | None], rel: float) -> None:
    assert list(values) == list(expected)
    for name, score in expected.items():
        assert values[name] == (None if score is None else pytest.approx(score, rel=rel)), name


def expected_scores(dense: Dense, head: int) -> dict[str, float | None]:
    """Compute the definitions one by one."""
    weights, prefix = dense.patches[:, head], dense.prefix[:, head]
    positive = weights.clamp(min=0)
    distances = (places(dense.grid)[dense.keys, None] - places(dense.grid)).square().sum(-1).sqrt()
    of_patches = positive / positive.sum(-1, keepdim=True)
    everything = torch.cat([positive, prefix], -1)
    everything = everything / everything.sum(-1, keepdim=True)
    others = weights.clone()
    others[:, torch.arange(len(dense.keys)), dense.keys] = 0
    received = others.sum(1)
    explained = total = 0.0
    for row in weights.unbind(1):
        row = row[:, (row != 0).any(0)]
        total += float((row - row.mean()).square().sum())
        explained += float(len(row) * (row.mean(0) - row.mean()).square().sum())
    return {
        "distance": float((of_patches * distances).sum(-1).mean()),
        "distance_clipped": float((of_patches * distances.clamp(max=3)).sum(-1).mean()),
        "influence": float(received.mean()),
        "influence_peak": float((received.amax(-1) / received.mean(-1)).mean()),
        "entropy": float(torch.special.entr(everything).sum(-1).mean()),
        "prefix_mass": float(prefix.sum(-1).mean()) if prefix.shape[-1] else None,
        "positional": explained / total,
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_equal_their_definitions(name: str) -> None:
    network, images = build(name)
    found = measure_scores(network, head_layers(network), as_batches(images))
    dense = dense_weights(network, images)
    assert list(found) == [
        (number, head) for number, layer in enumerate(dense) for head in range(layer.patches.shape[1])
    ]
    for (number, head), values in found.items():
        assert_scores(values, expected_scores(dense[number], head), 1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_prefix_and_received_weights_are_those_of_the_layer(name: str) -> None:
    network, images = build(name, 2)
    for recorded, dense in zip(recorded_layers(network, images), dense_weights(network, images), strict=True):
        queries = recorded.queries
        assert recorded.keys_of(queries).tolist() == dense.keys.tolist()
        rows = recorded.rows(queries)
        torch.testing.assert_close(rows.flatten(3), dense.patches)
        torch.testing.assert_close(recorded.prefix(queries), dense.prefix)
        torch.testing.assert_close(recorded.received().flatten(2), dense.patches.sum(2))
        for number in (0, 3, len(queries) - 1):
            torch.testing.assert_close(recorded.row(queries[number]), rows[:, :, number])


@pytest.mark.parametrize("name", NETWORKS)
def test_parts_hold_some_images(name: str) -> None:
    network, images = build(name)
    recorded = recorded_layers(network, images)[0]
    queries = recorded.queries[::3]
    parts = list(recorded.split(2))
    assert len(parts) == 3
    torch.testing.assert_close(torch.cat([part.rows(queries) for part in parts]), recorded.rows(queries))


def test_windows_that_do_not_overlap_share_a_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = NeighborhoodAttention2d(8, 1, 3).double()
    recorded = recorded_layers(PatchNet(layer).double(), torch.randn(1, 3, 48, 48, dtype=torch.float64))[0]
    passes: list[Tensor] = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kw: passes.append(args[2]) or grad(*args, **kw))
    rows = recorded.rows(recorded.queries)
    assert sum(int(chosen.sum()) for chosen in passes) == 144  # each query once
    assert len(passes) <= 3  # 5 × 5 windows hold the key next to a corner; 8 channels
    assert torch.equal(rows != 0, recorded.seen(recorded.queries).expand_as(rows))


def test_uniform_attention_has_the_mean_distance_of_the_grid() -> None:
    network: Any = vit(img_size=32, depth=1)
    attention = network.blocks[0].attn
    attention.qkv.weight.data[: 2 * 24] = 0
    attention.qkv.bias.data.zero_()
    found = measure_scores(network, head_layers(network), as_batches(torch.randn(4, 3, 32, 32)))
    mean = sum(math.dist(a, b) for a, b in product(product(range(8), repeat=2), repeat=2)) / 64**2
    assert f"{mean:.2f}" == "4.14"
    for values in found.values():
        assert values["distance"] == pytest.approx(mean, rel=1e-6)
        assert values["entropy"] == pytest.approx(math.log(65), rel=1e-6)
        assert values["prefix_mass"] == pytest.approx(1 / 65, rel=1e-6)
        assert values["influence"] == pytest.approx(63 / 65, rel=1e-6)
        assert values["influence_peak"] == pytest.approx(1, rel=1e-6)
        assert values["positional"] is None


def test_positional_attention_is_the_same_in_all_images() -> None:
    network: Any = vit(img_size=20, depth=1, class_token=False, global_pool="avg")
    network.pos_embed.data = torch.randn_like(network.pos_embed)
    batches = as_batches(torch.randn(6, 3, 20, 20))
    network.patch_embed.proj.weight.data.zero_()
    found = measure_scores(network, head_layers(network), batches)
    assert all(values["positional"] == pytest.approx(1, abs=1e-6) for values in found.values())
    network.patch_embed.proj.weight.data.normal_()
    network.pos_embed.data.zero_()
    found = measure_scores(network, head_layers(network), batches)
    assert all(values["positional"] < 0.4 for values in found.values())  # a mean of 6 images explains 1/6


def test_two_runs_are_equal_and_batches_do_not_matter() -> None:
    for name in ("vit_nano_patch4_32", "nat_pico"):
        network: Any = timm.create_model(name).eval()
        images, layers = torch.randn(5, 3, 32, 32), head_layers(network)
        found = measure_scores(network, layers, as_batches(images))
        assert measure_scores(network, layers, as_batches(images)) == found
        for head, values in measure_scores(network, layers, as_batches(images, 5)).items():
            assert_scores(values, found[head], 1e-3)


def test_large_maps_are_read_at_some_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = build("nat")
    monkeypatch.setattr(scores, "MAX_QUERIES", 41)
    monkeypatch.setattr(scores, "NUM_SAMPLED", 9)
    (dense,) = dense_weights(network, images)
    chosen = [row * 7 + column for row in (0, 2, 4) for column in (0, 2, 4)]
    some = Dense(dense.patches[:, :, chosen], dense.prefix[:, :, chosen], dense.grid, dense.keys[chosen])
    found = measure_scores(network, head_layers(network), as_batches(images))
    for (_, head), values in found.items():
        expected = expected_scores(some, head)
        own = dense.patches[:, head, chosen, chosen].mean()
        expected["influence"] = float((dense.patches[:, head].sum((1, 2)) / 42).mean() - own)
        expected["influence_peak"] = None
        assert_scores(values, expected, 1e-9)


@pytest.mark.parametrize(
    ("size", "stride", "number", "last"),
    [
        ((32, 32), (1, 1), 1024, (31, 31)),
        ((56, 56), (1, 1), 256, (52, 52)),
        ((64, 64), (2, 2), 1024, (31, 31)),
        ((1, 2000), (1, 1), 256, (0, 1992)),
        ((2000, 1), (1, 1), 256, (1992, 0)),
        ((8, 150), (1, 1), 256, (7, 145)),
    ],
)
def test_queries_of_large_maps_are_evenly_spaced(
    size: tuple[int, int], stride: tuple[int, int], number: int, last: tuple[int, int]
) -> None:
    unused: Any = None
    queries = choose_queries(WindowAttention(unused, unused, size, stride))
    assert len(set(queries)) == number
    assert queries[-1] == last


def test_some_layers_are_measured() -> None:
    network, images = build("vit")
    layers = head_layers(network)
    found = measure_scores(network, layers[1:], as_batches(images))
    assert list(found) == [(1, 0), (1, 1), (1, 2)]


def test_no_images_are_an_error() -> None:
    network, _ = build("vit")
    with pytest.raises(UserError, match="no images"):
        measure_scores(network, head_layers(network), [])
