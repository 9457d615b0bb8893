"""Halo attention as a module, against the paper's formula and timm's layer, at sizes of every kind."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers.halo_attn import HaloAttn
from torch import Tensor, nn

import visionattn
from visionattn.layers.accelerate import from_timm
from visionattn.layers.halo_attention import HaloAttention2d, resize_table


def attend_by_formula(layer: HaloAttention2d, x: Tensor) -> Tensor:
    """Compute each query alone, by a softmax over the keys of its block and halo that lie on the map (eq. 2)."""
    heads, block, halo, stride = layer.num_heads, layer.block_size, layer.halo_size, layer.query_stride
    _, _, height, width = x.shape
    q, kv = (
        (x.permute(0, 2, 3, 1) @ c.weight.flatten(1).T).unflatten(-1, (heads, -1)).double() for c in (layer.q, layer.kv)
    )
    head_dim = q.shape[-1]
    k, v = kv[..., :head_dim], kv[..., head_dim:]
    rows, columns = layer.pos_embed.height_rel.double(), layer.pos_embed.width_rel.double()
    center = len(rows) // 2
    lines = []
    for i in range(0, height, stride):
        line = []
        for j in range(0, width, stride):
            top, left = i // block * block - halo, j // block * block - halo
            ys = range(max(0, top), min(height, top + block + 2 * halo))
            xs = range(max(0, left), min(width, left + block + 2 * halo))
            scores, values = [], []
            for y in ys:
                for z in xs:
                    r = rows[y - i + center] + columns[z - j + center]
                    content = (q[:, i, j] * k[:, y, z]).sum(-1) * head_dim**-0.5
                    position = q[:, i, j] @ r * (head_dim**-0.5 if layer.scale_rel_pos else 1)
                    scores.append(content + position)
                    values.append(v[:, y, z])
            p = torch.stack(scores, -1).softmax(-1)  # [B, heads, keys]
            line.append(torch.einsum("bnk,kbnc->bnc", p, torch.stack(values)).flatten(1))
        lines.append(torch.stack(line, -1))
    return torch.stack(lines, -2)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((8, 8), {"block_size": 4, "halo_size": 1}),
        ((7, 10), {"block_size": 4, "halo_size": 2, "dim_out": 24}),
        ((9, 5), {"block_size": 4, "halo_size": 1, "stride": 2}),
        ((7, 7), {"block_size": 3, "halo_size": 1, "stride": 2, "scale_rel_pos": True}),
        ((3, 2), {"block_size": 4, "halo_size": 3, "head_dim": 6}),
    ],
    ids=str,
)
def test_halo_attention_equals_the_formula(size: tuple[int, int], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = HaloAttention2d(16, num_heads=2, **options)
    x = torch.randn(2, 16, *size)
    torch.testing.assert_close(layer(x), attend_by_formula(layer, x).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(8, 16), (16, 8)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale_pos_embed": True, "qkv_bias": True},
        {"stride": 2},
        {"stride": 2, "avg_down": True, "qk_ratio": 0.5},
        {"stride": 2, "dim_out": 64, "dim_head": 8, "halo_size": 2},
    ],
    ids=str,
)
def test_halo_attention_equals_timm_with_its_weights(options: dict[str, Any], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs = HaloAttn(32, num_heads=4, **{"block_size": 8, "halo_size": 3, **options})
    ours = from_timm(copy.deepcopy(theirs))
    check_twins(theirs, ours, size)


def test_halo_attention_equals_timm_for_odd_blocks() -> None:
    theirs = HaloAttn(32, num_heads=4, stride=2, block_size=5, halo_size=2)
    check_twins(theirs, from_timm(copy.deepcopy(theirs)), (10, 20))


def check_twins(theirs: nn.Module, ours: nn.Module, size: tuple[int, int]) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 32, *size, requires_grad=True)
    results = []
    for layer in (theirs, ours):
        out = layer(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


def test_timm_weights_load_by_name() -> None:
    theirs = HaloAttn(32, num_heads=4, stride=2, block_size=8, halo_size=3)
    ours = HaloAttention2d(32, num_heads=4, stride=2, block_size=8, halo_size=3, timm_compat=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 32, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def give_branches_weight(model: nn.Module) -> nn.Module:
    """Set norms that start at zero to other values; with zeros, networks are equal whatever the attention."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", ["halonet26t", "sehalonet33ts", "haloregnetz_b", "eca_halonext26ts"])
def test_accelerated_network_equals_timm(name: str) -> None:
    model = give_branches_weight(timm.create_model(name))
    x = torch.randn(1, *model.pretrained_cfg["input_size"])  # type: ignore[index, misc]
    with torch.no_grad():
        expected = model(x)
        names = list(model.state_dict())
        assert visionattn.accelerate(model) is model
        torch.testing.assert_close(model(x), expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)
    assert not any(isinstance(module, HaloAttn) for module in model.modules())
    assert list(model.state_dict()) == names


def test_accelerated_network_takes_sizes_that_timm_refuses() -> None:
    model = give_branches_weight(timm.create_model("halonet26t"))
    with torch.no_grad(), pytest.raises(AssertionError):
        model(torch.randn(1, 3, 224, 224))
    visionattn.accelerate(model)
    with torch.no_grad():
        for size in ((224, 224), (320, 200)):
            assert model(torch.randn(1, 3, *size)).isfinite().all()


def test_accelerate_refuses_models_without_halo_attention() -> None:
    with pytest.raises(ValueError, match=r"ResNet has no HaloAttn layer to accelerate.*\*halo\*"):
        visionattn.accelerate(timm.create_model("resnet18"))


def test_padding_gets_no_attention() -> None:
    """A map has the same result as a part of a larger map with other blocks far away."""
    torch.manual_seed(0)
    layer = HaloAttention2d(16, num_heads=2, block_size=4, halo_size=2)
    x = torch.randn(1, 16, 4, 4)
    uniform = torch.ones(1, 16, 4, 4)
    torch.testing.assert_close(layer(uniform), layer.kv(uniform)[:, [*range(8, 16), *range(24, 32)]])
    wide = torch.cat([x, torch.randn(1, 16, 4, 4)], -1)
    changed = wide.clone()
    changed[..., 6:] = 1e3  # beyond the halo of the first block
    torch.testing.assert_close(layer(wide)[..., :4], layer(changed)[..., :4])
    assert not torch.allclose(layer(wide)[..., :4], layer(x))  # two columns of the halo are seen


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_is_kept(channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    layer = HaloAttention2d(16, num_heads=2, block_size=4, halo_size=1)
    x = torch.randn(2, 16, 6, 6).contiguous(memory_format=layout)
    assert layer(x).is_contiguous(memory_format=layout)


def test_changed_window_keeps_near_and_far() -> None:
    table = torch.linspace(-1, 1, 9)[:, None].expand(9, 2)
    torch.testing.assert_close(resize_table(table, 17)[:, 0], torch.linspace(-1, 1, 17))
    layer = HaloAttention2d(16, num_heads=2, block_size=4, halo_size=1)
    layer.pos_embed.height_rel.requires_grad_(False)
    center = layer.pos_embed.width_rel.detach()[5].clone()
    layer.set_window(6, 3)
    assert [p.requires_grad for p in layer.pos_embed.parameters()] == [False, True]
    assert layer.pos_embed.width_rel.shape == (23, 8)
    torch.testing.assert_close(layer.pos_embed.width_rel.detach()[11], center)
    x = torch.randn(1, 16, 7, 7)
    torch.testing.assert_close(layer(x), attend_by_formula(layer, x).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim; got dim 16 and num_heads 3"),
        ({"num_heads": 2, "dim_out": 15}, "num_heads must divide dim_out; got dim_out 15"),
        ({"num_heads": 2, "block_size": 0}, "block_size must be at least 1 and halo_size at least 0; got 0 and 3"),
        ({"num_heads": 2, "stride": 3}, "stride must be 1 or 2; got 3"),
    ],
)
def test_bad_configurations_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HaloAttention2d(16, **options)
