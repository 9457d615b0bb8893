"""Recorded attention weights: those that a layer computes with, and those of the papers' equations."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import timm
import torch
from timm.layers.halo_attn import HaloAttn
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn

from visionattn.analysis.attention import (
    RECORDED_MIXERS,
    AttentionLayer,
    attention_layers,
    record_attention,
    unrecorded_mixers,
)
from visionattn.analysis.recorded import RecordedAttention, TokenAttention
from visionattn.layers.halo_attention import HaloAttention2d
from visionattn.layers.mixers import MIXERS, create_mixer
from visionattn.layers.mixers.full import FullAttention2d
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def record(layer: AttentionLayer, network: nn.Module, x: Tensor) -> Any:
    with record_attention({0: layer}) as found, torch.no_grad():
        network(x)
    return found[0]


def all_rows(recorded: Any, queries: tuple[int, int]) -> Tensor:
    """Return the weights of all queries, `[B, h, Q_h, Q_w, H, W]`."""
    places = product(*map(range, queries))
    return torch.stack([recorded.row(place) for place in places], 2).unflatten(2, queries)


def keys_of_neighborhood(query: int, length: int, kernel: int, dilation: int) -> Iterator[int]:
    """Yield the keys of an axis that a query sees: the nearest of its dilation group, a full window at the border."""
    group = list(range(query % dilation, length, dilation))
    nearest = sorted(group, key=lambda key: (abs(key - query), key))
    yield from sorted(nearest[: min(kernel, len(group))])


def neighborhood_weights(module: NeighborhoodAttention2d, x: Tensor, query: tuple[int, int]) -> Tensor:
    """Compute equation 2 of the NAT paper for one query, key by key."""
    _, height, width, _ = x.shape
    q, k, _ = module.qkv(x)[0].unflatten(-1, (3, module.num_heads, -1)).unbind(2)
    assert isinstance(module.kernel_size, int)
    size, rpb = module.kernel_size, module.rpb
    assert rpb is not None
    rates = [module.dilation or max(1, length // size) for length in (height, width)]
    rows, columns = (
        keys_of_neighborhood(place, length, size, rate)
        for place, length, rate in zip(query, (height, width), rates, strict=True)
    )
    scores = torch.full((module.num_heads, height, width), -math.inf, dtype=x.dtype)
    for row, column in product(rows, list(columns)):
        up, left = (
            (key - place) // rate + size - 1 for key, place, rate in zip((row, column), query, rates, strict=True)
        )
        scores[:, row, column] = (q[query] * k[row, column]).sum(-1) * q.shape[-1] ** -0.5 + rpb[:, up, left]
    return scores.flatten(1).softmax(-1).view_as(scores)


@pytest.mark.parametrize(("dilation", "size"), [(1, (7, 5)), (2, (9, 8)), (None, (9, 6)), (1, (2, 6))])
def test_neighborhood_weights_equal_the_paper(dilation: int | None, size: tuple[int, int]) -> None:
    module = NeighborhoodAttention2d(8, 2, 3, dilation, dtype=torch.float64)
    nn.init.normal_(module.rpb)  # type: ignore[arg-type]
    x = torch.randn(1, *size, 8, dtype=torch.float64)
    recorded = record(AttentionLayer("attn", module), module, x)
    for query in ((0, 0), (1, size[1] - 1), (size[0] // 2, size[1] // 2)):
        expected = neighborhood_weights(module, x, query).detach()
        torch.testing.assert_close(recorded.row(query)[0], expected)
        assert torch.equal(recorded.visible(query), expected[0] > 0)


@pytest.mark.parametrize(("stride", "size"), [(1, (8, 8)), (1, (7, 10)), (2, (8, 7))])
def test_halo_weights_equal_the_paper(stride: Any, size: tuple[int, int]) -> None:
    module = HaloAttention2d(8, num_heads=2, block_size=4, halo_size=1, stride=stride, scale_rel_pos=True)
    module = module.double()
    x = torch.randn(1, 8, *size, dtype=torch.float64)
    recorded = record(AttentionLayer("attn", module), module, x)
    assert recorded.stride == (stride, stride)
    q = module.q(x)[0].permute(1, 2, 0).unflatten(-1, (2, 4))
    k = module.kv(x)[0].permute(1, 2, 0).unflatten(-1, (2, 8))[..., :4]
    rel: Any = module.pos_embed
    for query in ((0, 0), (1, 3), (q.shape[0] - 1, q.shape[1] - 1)):
        place = [stride * index for index in query]
        scores = torch.full((2, *size), -math.inf, dtype=torch.float64)
        for key in product(*(range(length) for length in size)):
            starts = [at // 4 * 4 - 1 for at in place]
            if all(start <= at < start + 6 for start, at in zip(starts, key, strict=True)):
                up, left = (at - own + 5 for at, own in zip(key, place, strict=True))
                scores[:, *key] = (q[query] * (k[key] + rel.height_rel[up] + rel.width_rel[left])).sum(-1) / 2
        expected = scores.flatten(1).softmax(-1).view_as(scores).detach()
        torch.testing.assert_close(recorded.row(query)[0], expected)
        assert torch.equal(recorded.visible(query), expected[0] > 0)


@pytest.mark.parametrize(
    ("module", "shape", "queries", "whole"),
    [
        pytest.param(NeighborhoodAttention2d(6, 2, 3, 2), (2, 6, 7, 6), (6, 7), True, id="dilated"),
        pytest.param(NeighborhoodAttention2d(6, 2, 3, 3, legacy_pad=True), (1, 5, 9, 6), (5, 9), False, id="padded"),
        pytest.param(HaloAttention2d(6, num_heads=2, block_size=2, halo_size=1), (2, 6, 5, 4), (5, 4), True, id="halo"),
        *[
            pytest.param(create_mixer(name, 6, 2), (2, 5, 6, 6), (5, 6), True, id=name)
            for name in RECORDED_MIXERS
            if name != "neighborhood"
        ],
        pytest.param(
            HaloAttention2d(6, num_heads=2, block_size=2, halo_size=1, stride=2, timm_compat=True),
            (1, 6, 4, 4),
            (2, 2),
            False,
            id="timm's halo",
        ),
    ],
)
def test_output_is_the_weighted_sum_of_values(
    module: Any, shape: tuple[int, ...], queries: tuple[int, int], whole: bool
) -> None:
    recorded = record(AttentionLayer("attn", module), module, torch.randn(shape))
    values, attend = recorded.open()
    height, width = recorded.size
    rows = all_rows(recorded, queries)
    sums = rows.sum((-1, -2))
    for query in ((0, 0), (queries[0] - 1, queries[1] // 2)):
        assert torch.equal(recorded.visible(query), rows[0, 0, query[0], query[1]] != 0)
    if whole:
        torch.testing.assert_close(sums, torch.ones_like(sums))
        out = torch.einsum("bnyxij,bijnc->byxnc", rows, values)
        torch.testing.assert_close(out, attend(values).detach())
    else:  # zeros beyond the map take their share
        assert sums.max() <= 1 + 1e-6
        assert sums.min() < 0.99
        inside = torch.zeros_like(values)
        inside[:, :height, :width] = values[:, :height, :width]
        out = torch.einsum("bnyxij,bijnc->byxnc", rows, values[:, :height, :width])
        torch.testing.assert_close(out, attend(inside)[:, : queries[0], : queries[1]].detach())


def test_timms_halo_layer_is_the_weighted_sum_of_values() -> None:
    layer = HaloAttn(8, num_heads=2, block_size=4, halo_size=1)
    x = torch.randn(1, 8, 8, 8)
    recorded = record(AttentionLayer("attn", layer), layer, x)
    values, _ = recorded.open()  # those of the zeros around the map are 0
    with torch.no_grad():
        out = torch.einsum("bnyxij,bijnc->bncyx", all_rows(recorded, (8, 8)), values).flatten(1, 2)
        torch.testing.assert_close(layer(x), out)


@pytest.mark.parametrize("kind", [SwinTransformerBlock, SwinTransformerV2Block])
@pytest.mark.parametrize("size", [(8, 12), (6, 9)])
def test_swin_block_is_the_weighted_sum_of_values(kind: Any, size: tuple[int, int]) -> None:
    block = kind(8, size, 2, window_size=4, shift_size=2).eval()
    x = torch.randn(1, *size, 8)
    recorded = record(AttentionLayer("block", block), block, x)
    rows = all_rows(recorded, size)
    for query in ((0, 0), (5, 8), (size[0] - 1, size[1] - 1)):
        assert (rows[:, :, query[0], query[1]][..., ~recorded.visible(query)] < 1e-30).all()
    after = kind is SwinTransformerV2Block  # its norms come after attention and MLP
    with torch.no_grad():
        values = block.attn.qkv(x if after else block.norm1(x))[..., 16:].unflatten(-1, (2, 4))
        beyond = block.attn.qkv(torch.zeros(8))[16:].unflatten(-1, (2, 4))  # of the zeros around the map
        out = torch.einsum("bnyxij,bijnc->byxnc", rows, values)
        out = out + (1 - rows.sum((-1, -2))).movedim(1, -1)[..., None] * beyond
        out = block.attn.proj(out.flatten(3))
        x1 = x + (block.norm1(out) if after else out)
        expected = x1 + (block.norm2(block.mlp(x1)) if after else block.mlp(block.norm2(x1)))
        torch.testing.assert_close(block(x), expected)


NETWORKS: dict[str, dict[str, Any]] = {
    "vit_nano_patch4_32": {},
    "dcal_vit_nano": {},
    "test_vit4": {"img_size": 32, "patch_size": 8, "reg_tokens": 2},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 1},
    "beit_base_patch16_224": {"img_size": 32, "embed_dim": 24, "num_heads": 2, "depth": 1},
    "vit_relpos_small_patch16_224": {"img_size": 32, "depth": 1},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_tokens_sum_to_1_and_leave_outputs_as_they_are(name: str) -> None:
    model: Any = timm.create_model(name, num_classes=0, **NETWORKS[name]).eval()
    images = torch.randn(1, 3, *[NETWORKS[name].get("img_size", 32)] * 2)
    layers = attention_layers(model)
    assert [layer.name for layer in layers] == [f"blocks.{number}" for number in range(len(model.blocks))]
    attentions: list[Any] = [layer.module for layer in layers]
    fused = [attention.fused_attn for attention in attentions]
    with torch.no_grad():
        before = model(images)
        with record_attention(dict(enumerate(layers))) as found:
            torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-4)
    assert [attention.fused_attn for attention in attentions] == fused
    assert not any(attention.attn_drop._forward_pre_hooks for attention in attentions)
    for recorded in found.values():
        assert isinstance(recorded, TokenAttention)
        assert recorded.size[0] * recorded.size[1] + recorded.num_prefix_tokens == recorded.weights.shape[-1]
        torch.testing.assert_close(recorded.weights.sum(-1), torch.ones(recorded.weights.shape[:-1]))
    assert layers[0].has_class_token == (name not in ("test_vit4", "vit_relpos_small_patch16_224"))


@pytest.mark.parametrize("name", ["test_vit", "dcal_vit_nano"])
def test_weights_of_tokens_are_those_of_the_output(name: str) -> None:
    model: Any = timm.create_model(name, img_size=32, patch_size=8).eval()
    attention = model.blocks[1].attn
    seen: dict[str, Tensor] = {}
    attention.qkv.register_forward_hook(lambda module, inputs, out: seen.update(qkv=out))
    attention.proj.register_forward_hook(lambda module, inputs, out: seen.update(out=inputs[0]))
    recorded = record(attention_layers(model)[1], model, torch.randn(2, 3, 32, 32))
    values = seen["qkv"].unflatten(-1, (3, attention.num_heads, -1))[:, :, 2].transpose(1, 2)
    torch.testing.assert_close((recorded.weights @ values).transpose(1, 2).flatten(2), seen["out"])
    patch = recorded.weights[:, :, 1 + 6, 1:].unflatten(-1, (4, 4))  # the third of the second row
    assert torch.equal(recorded.row((1, 2)), patch)


def test_points_are_those_of_the_map_of_queries() -> None:
    module = HaloAttention2d(6, num_heads=2, block_size=2, halo_size=1, stride=2)
    recorded = record(AttentionLayer("attn", module), module, torch.randn(1, 6, 7, 10))
    places = [recorded.query_at(x, y) for x, y in ((0, 0), (0.5, 0.5), (1, 1), (0.99, 0.2))]
    assert places == [(0, 0), (2, 2), (3, 4), (0, 4)]


def test_weights_are_recorded_in_inference_mode() -> None:
    model = timm.create_model("nat_pico", num_classes=0).eval()
    layers = attention_layers(model)
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode(), record_attention(dict(enumerate(layers))) as found:
        model(images)
        inside = found[3].row((2, 2))
    assert [found[number].size for number in (0, 2, 6)] == [(16, 16), (8, 8), (4, 4)]
    torch.testing.assert_close(found[3].row((2, 2)), inside)
    torch.testing.assert_close(inside.sum((-1, -2)), torch.ones(1, 4))


def test_networks_of_other_kinds_have_no_recordable_attention() -> None:
    for name in ("test_resnet", "test_convnext", "test_efficientnet"):
        assert attention_layers(timm.create_model(name)) == []


def test_recorder_restores_the_model_after_an_error() -> None:
    model: Any = nn.Sequential(
        timm.create_model("vit_nano_patch4_32", num_classes=0),
        SwinTransformerV2Block(8, (8, 8), 2, window_size=4, shift_size=2),
        timm.create_model("nat_pico", num_classes=0),
    )
    layers = attention_layers(model)
    before = [(set(vars(module)), getattr(module, "fused_attn", None)) for module in model.modules()]

    def fail(recorded: RecordedAttention) -> None:
        raise RuntimeError("cannot keep this")

    with pytest.raises(RuntimeError, match="keep"), record_attention(dict(enumerate(layers)), fail), torch.no_grad():
        model[0](torch.randn(1, 3, 32, 32))
    assert [(set(vars(module)), getattr(module, "fused_attn", None)) for module in model.modules()] == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_mixer_of_a_user_counts_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIXERS, "mine", type("Mine", (FullAttention2d,), {}))
    monkeypatch.setitem(MIXERS, "other", type("Other", (MIXERS["ttt"],), {}))
    model = nn.Sequential(create_mixer("mine", 4, 1), create_mixer("other", 4, 1))
    assert unrecorded_mixers(model) == ["other"]
