"""NAT, DiNAT, DiNAT_s and the isotropic models against their papers' tables (arXiv 2204.07143, 2209.15001)."""

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import visionattn  # noqa: F401 (registers the models)
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d, largest_dilation, resize_rpb
from visionattn.models._nat_blocks import PatchMerging
from visionattn_kernels import neighborhood_attention_2d

# name: parameters in millions, GFLOPs (multiply-adds) at 224
TABLE = {
    "nat_mini": (19.98, 2.7),
    "nat_tiny": (27.90, 4.3),
    "nat_small": (50.74, 7.8),
    "nat_base": (89.77, 13.7),
    "dinat_mini": (19.98, 2.7),
    "dinat_tiny": (27.90, 4.3),
    "dinat_small": (50.72, 7.8),  # no LayerScale
    "dinat_base": (89.77, 13.7),
    "dinat_large": (200.94, 30.6),
}


@pytest.mark.parametrize(("name", "params", "gflops"), [(k, *v) for k, v in TABLE.items()])
def test_parameters_and_flops_of_the_table(name: str, params: float, gflops: float) -> None:
    model = timm.create_model(name, device=torch.device("meta"))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=0.01)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, abs=0.15)


# name: size of images, parameters in millions and GFLOPs as published, to the digits that they are published with
ROUGH_TABLE = {
    "dinat_large_384": (384, 200, 89.7),
    "dinat_large_384_k11": (384, 200, 92.4),
    "dinat_s_tiny": (224, 28, 4.5),
    "dinat_s_small": (224, 50, 8.7),
    "dinat_s_base": (224, 88, 15.4),
    "dinat_s_large": (224, 197, 34.5),
    "dinat_s_large_384": (384, 197, 101.5),
    "nat_isotropic_small": (224, 22, 4.3),
    "nat_isotropic_base": (224, 86, 16.9),
    "dinat_isotropic_small": (224, 22, 4.3),
    "dinat_isotropic_base": (224, 86, 16.9),
    "vitrpb_small": (224, 22, 4.6),
    "vitrpb_base": (224, 86, 17.5),
}


@pytest.mark.parametrize(("name", "size", "params", "gflops"), [(k, *v) for k, v in ROUGH_TABLE.items()])
def test_parameters_and_flops_as_published(name: str, size: int, params: int, gflops: float) -> None:
    """Some of the published numbers are rounded down (200.9 and 86.6 million), hence a bound of one digit."""
    model = timm.create_model(name, device=torch.device("meta"))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=1.2)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, rel=0.004, abs=0.05)


def test_parameters_and_flops_of_nat_pico_at_32() -> None:
    model = timm.create_model("nat_pico", device=torch.device("meta"))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(1.08, abs=0.01)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(0.05, abs=0.005)


def test_stem_with_batch_norms_differs_in_norms_and_biases() -> None:
    """It has a norm after its first convolution too, of 24 channels, and no biases of convolutions.

    Each block begins with a depthwise convolution of 3x3.
    """
    sizes = [sum(p.numel() for p in timm.create_model(name).parameters()) for name in ("nat_pico", "nat_pico_stem")]
    stem, encoding = 2 * 24 - (24 + 48), (9 + 1) * (2 * 48 + 3 * 96 + 2 * 192)
    assert sizes[1] - sizes[0] == stem + encoding
    assert timm.create_model("nat_pico_stem").patch_embed(torch.randn(1, 3, 32, 32)).shape == (1, 48, 16, 16)


def dilations(name: str, **options: object) -> list[list[int | None]]:
    model = timm.create_model(name, device=torch.device("meta"), **options)
    return [[block.attn.dilation for block in level.blocks] for level in model.levels]


def test_dinat_alternates_dilation_1_and_that_of_its_level() -> None:
    assert dilations("dinat_mini") == [[1, 8, 1], [1, 4, 1, 4], [1, 2, 1, 2, 1, 2], [1, 1, 1, 1, 1]]
    assert dilations("dinat_mini", dilations=(13, 6, 3, 1))[0] == [1, 13, 1]
    assert {d for level in dilations("nat_mini") for d in level} == {1}


def test_largest_dilation_gives_the_dilations_of_the_paper() -> None:
    """8, 4, 2, 1 at 224, also at 384 with kernel 11; 13, 6, 3, 1 at 384 with kernel 7."""
    assert [largest_dilation(224 // r, 7) for r in (4, 8, 16, 32)] == [8, 4, 2, 1]
    assert [largest_dilation(384 // r, 11) for r in (4, 8, 16, 32)] == [8, 4, 2, 1]
    assert [largest_dilation(384 // r, 7) for r in (4, 8, 16, 32)] == [13, 6, 3, 1]
    fixed, adaptive = (
        timm.create_model("dinat_mini", num_classes=3, **o).eval() for o in ({}, {"dilations": "largest"})
    )
    adaptive.load_state_dict(fixed.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(adaptive(x), fixed(x))


def test_largest_dilation_is_taken_per_axis() -> None:
    layer = NeighborhoodAttention2d(16, 2, kernel_size=3, dilation=None)
    x = torch.randn(2, 6, 13, 16)
    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 8)).unbind(3)
    expected = neighborhood_attention_2d(q, k, v, 3, dilation=(2, 4), rpb=layer.rpb)
    torch.testing.assert_close(layer(x), layer.proj(expected.flatten(-2)))  # type: ignore[union-attr]


def test_dilation_may_be_given_per_block() -> None:
    """Their detectors have other dilations in each block."""
    per_block = ((1, 28, 1), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3, 1, 3, 1))
    assert dilations("dinat_mini", dilations=per_block) == [list(level) for level in per_block]
    assert dilations("dinat_large_384")[0] == [1, 13, 1]
    isotropic = timm.create_model("dinat_isotropic_small", device=torch.device("meta"))
    assert [block.attn.dilation for block in isotropic.blocks] == [1, 2] * 6


def test_patches_fill_up_with_zeros_and_odd_maps_are_padded_before_merging() -> None:
    narrow: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 1), "num_heads": (1, 2, 4), "dilations": (2, 1, 1)}
    model = timm.create_model("dinat_s_tiny", **narrow, num_classes=3).eval()
    x = torch.randn(1, 3, 37, 50)  # 10x13 patches, then 5x7 and 3x4
    assert [f.shape[2:] for f in model.forward_intermediates(x)[1]] == [(10, 13), (5, 7), (3, 4)]
    filled = torch.nn.functional.pad(x, (0, 2, 0, 3))
    torch.testing.assert_close(model(x), model(filled))


def test_patch_merging_is_a_2x2_convolution_of_normed_squares() -> None:
    merging = PatchMerging(4)
    torch.nn.init.normal_(merging.norm.weight)
    x = torch.randn(2, 4, 6, 8)
    expected = torch.empty(2, 8, 3, 4)
    for i in range(3):
        for j in range(4):
            a, b, c, d = (x[:, :, 2 * i + di, 2 * j + dj] for di, dj in ((0, 0), (1, 0), (0, 1), (1, 1)))
            expected[:, :, i, j] = merging.reduction(merging.norm(torch.cat([a, b, c, d], 1)))
    torch.testing.assert_close(merging(x), expected)


def narrow_vit(**options: Any) -> nn.Module:
    return timm.create_model("vitrpb_small", embed_dim=16, depth=2, num_heads=2, num_classes=3, **options).eval()


def far_influence(model: nn.Module, size: int) -> bool:
    """Whether the first patch sees the last one."""
    maps = []
    for corner in (0.0, 1.0):
        x = torch.zeros(1, 3, size, size)
        x[..., -16:, -16:] = corner
        maps.append(model.forward_intermediates(x, indices=[0], intermediates_only=True)[0])
    return not torch.equal(maps[0][..., 0, 0], maps[1][..., 0, 0])


def test_vit_sees_the_whole_map_at_the_size_that_it_was_given() -> None:
    model = narrow_vit()
    assert far_influence(model, 224)
    assert far_influence(model, 64)
    assert not far_influence(model, 320)
    model.set_input_size(320)
    assert model.blocks[0].attn.rpb.shape == (2, 39, 39)
    assert far_influence(model, 320)
    assert not far_influence(narrow_vit(img_size=(320, 64)), 320)
    model.set_input_size((320, 64))
    assert model.blocks[0].attn.rpb.shape == (2, 39, 7)


def test_tables_are_interpolated_bicubically() -> None:
    layer = NeighborhoodAttention2d(8, 2, kernel_size=3)
    table = layer.rpb.detach()
    layer.set_kernel_size((5, 3))
    expected = torch.nn.functional.interpolate(table[None], (9, 5), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(layer.rpb.detach(), expected)
    flat = resize_rpb(torch.full((2, 13, 13), 0.3), 11)
    torch.testing.assert_close(flat, torch.full((2, 21, 21), 0.3))


@pytest.mark.parametrize(("size", "kernel_size", "dilation"), [((5, 4), 7, 1), ((9, 3), 3, 2), ((6, 8), 3, None)])
def test_legacy_pad_attends_to_zeros_below_and_to_the_right(
    size: tuple[int, int], kernel_size: int, dilation: int | None
) -> None:
    layer = NeighborhoodAttention2d(8, 2, kernel_size, dilation, legacy_pad=True)
    torch.nn.init.normal_(layer.qkv.bias)
    x = torch.randn(2, *size, 8)
    window = kernel_size * (dilation or 1)
    padded = torch.zeros(2, max(size[0], window), max(size[1], window), 8)
    padded[:, : size[0], : size[1]] = x
    q, k, v = layer.qkv(padded).unflatten(-1, (3, 2, 4)).unbind(3)
    step = dilation or (2, 2)
    attended = neighborhood_attention_2d(q, k, v, kernel_size, dilation=step, rpb=layer.rpb, backend="reference")
    expected = layer.proj(attended.flatten(-2)[:, : size[0], : size[1]])  # type: ignore[union-attr]
    torch.testing.assert_close(layer(x), expected)
    layer.legacy_pad = False
    fits = size[0] >= window and size[1] >= window
    assert torch.allclose(layer(x), expected, atol=1e-5) == fits


def test_drop_path_rises_linearly() -> None:
    model = timm.create_model("nat_mini", drop_path_rate=0.2, device=torch.device("meta"))
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for level in model.levels for block in level.blocks]
    assert rates == pytest.approx([0.2 * i / 17 for i in range(18)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilations": (2, 1)}, 'dilations must be None, "largest" or one entry per level, 4'),
        ({"dilations": "smallest"}, "got 'smallest'"),
        ({"dilations": ((1, 2), 1, 1, 1)}, "one int per block, 3; got \\(1, 2\\)"),
        ({"embed": "swin"}, 'embed must be "conv", "stem" or "patch"; got \'swin\''),
        ({"num_heads": (2, 4)}, "num_heads must have one entry per level, 4; got 2"),
        ({"num_heads": (3, 4, 8, 16)}, "num_heads must divide dim; got dim 64 and num_heads 3"),
    ],
)
def test_bad_configurations_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("nat_mini", **options)
