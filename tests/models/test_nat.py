"""NAT and DiNAT against their papers' tables (arXiv 2204.07143, 2209.15001)."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import visionattn  # noqa: F401 (registers the models)
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d, largest_dilation
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


def test_parameters_and_flops_of_nat_pico_at_32() -> None:
    model = timm.create_model("nat_pico", device=torch.device("meta"))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(1.08, abs=0.01)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(0.05, abs=0.005)


def dilations(name: str, **options: object) -> list[list[int | None]]:
    model = timm.create_model(name, device=torch.device("meta"), **options)
    return [[block.attn.dilation for block in level.blocks] for level in model.levels]


def test_dinat_alternates_dilation_1_and_that_of_its_level() -> None:
    assert dilations("dinat_mini") == [[1, 8, 1], [1, 4, 1, 4], [1, 2, 1, 2, 1, 2], [1, 1, 1, 1, 1]]
    assert dilations("dinat_mini", dilations=(13, 6, 3, 1))[0] == [1, 13, 1]
    assert {d for level in dilations("nat_mini") for d in level} == {1}


def test_largest_dilation_gives_those_of_the_paper() -> None:
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


def test_drop_path_rises_linearly() -> None:
    model = timm.create_model("nat_mini", drop_path_rate=0.2, device=torch.device("meta"))
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for level in model.levels for block in level.blocks]
    assert rates == pytest.approx([0.2 * i / 17 for i in range(18)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilations": (2, 1)}, 'dilations must be None, "largest" or one int per level, 4'),
        ({"dilations": "smallest"}, "got 'smallest'"),
        ({"num_heads": (2, 4)}, "num_heads must have one entry per level, 4; got 2"),
        ({"num_heads": (3, 4, 8, 16)}, "num_heads must divide dim; got dim 64 and num_heads 3"),
    ],
)
def test_bad_configurations_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("nat_mini", **options)
