"""Tiles of the Triton kernels and what they cost by estimate."""

import math

import pytest

from visionattn_kernels import Window
from visionattn_kernels.attention.triton import plan
from visionattn_kernels.attention.triton.plan import Tile

pytest.importorskip("triton")

from visionattn_kernels.attention.triton import cost, tuning

NAT = (Window.neighborhood(7), (56, 56))


@pytest.mark.parametrize("kind", list(cost.COSTS))
@pytest.mark.parametrize(("channels", "itemsize"), [(32, 2), (32, 4), (256, 4)])
def test_default_tiles(kind: str, channels: int, itemsize: int) -> None:
    tiles = tuning.default_tiles(kind, *NAT, channels, itemsize)
    ranked = tuning.rank_tiles(kind, *NAT, channels, itemsize)
    assert len(set(tiles)) == len(tiles) <= 2 * tuning.MAX_DEFAULTS + 1
    assert tiles[: tuning.MAX_DEFAULTS] == ranked[: tuning.MAX_DEFAULTS]
    for tile in tiles:
        assert min(math.prod(tile.query), math.prod(tile.key)) >= 16
    assert math.prod(tiles[-1].query) == math.prod(tiles[-1].key) == 16
    assert (tiles[-1].num_warps, tiles[-1].num_stages) == (1, 1)


@pytest.mark.parametrize("kind", list(cost.COSTS))
def test_registers_of_the_best_tile_are_not_spilled(kind: str) -> None:
    best = tuning.default_tiles(kind, *NAT, 32, 2)[0]
    assert cost.count_registers(kind, best, 32, 2) <= cost.MAX_REGISTERS


def test_cost_grows_with_work() -> None:
    tile = Tile((8, 8), (8, 8), 4, 2)
    least = cost.estimate("forward", tile, 100, 10, 32, 2)
    assert cost.estimate("forward", tile, 200, 20, 32, 2) == pytest.approx(2 * least)
    for more in [(101, 10, 32, 2), (100, 11, 32, 2), (100, 10, 64, 2), (100, 10, 32, 4)]:
        assert cost.estimate("forward", tile, *more) > least
    assert cost.estimate("key", tile, 100, 10, 32, 2) > least


@pytest.mark.parametrize("kind", ["forward", "key"])
def test_cost_of_warps(kind: str) -> None:
    """A tile of few scores needs one warp; the registers of one warp do not hold a large one."""
    small, large = (
        [cost.estimate(kind, Tile(side, side, warps, 2), 100, 10, 32, 2) for warps in tuning.WARPS]
        for side in ((4, 4), (8, 16))
    )
    assert small == sorted(small)
    assert large.index(min(large)) > 0


MACHINE_CODE = [
    # Kernel, tile, bytes of a number; instructions of all warps in a turn, registers of a thread: Triton 3.6, sm_90,
    # problem "nat-tiny-1 ... d1 rpb" of kernels/bench/compile_report.py (float32 without rpb).
    ("forward", Tile((8, 2), (4, 8), 1, 2), 2, 406, 101),
    ("forward", Tile((4, 8), (2, 16), 1, 2), 2, 608, 168),
    ("forward", Tile((8, 8), (4, 16), 4, 2), 2, 2100, 128),
    ("query", Tile((8, 2), (4, 8), 1, 2), 2, 380, 127),
    ("query", Tile((8, 8), (4, 16), 4, 2), 2, 1972, 118),
    ("key", Tile((2, 16), (2, 8), 1, 2), 2, 429, 185),
    ("key", Tile((16, 2), (8, 8), 2, 2), 2, 1482, 255),
    ("key", Tile((16, 4), (8, 8), 4, 2), 2, 3560, 250),
    ("offset", Tile((8, 2), (4, 8), 1, 2), 2, 315, 182),
    ("offset", Tile((8, 8), (2, 16), 2, 2), 2, 962, 236),
    ("forward", Tile((8, 2), (2, 8), 1, 2), 4, 890, 255),
    ("forward", Tile((8, 8), (2, 16), 4, 2), 4, 5940, 239),
    ("key", Tile((8, 2), (2, 8), 1, 2), 4, 1420, 255),
]


@pytest.mark.parametrize(("kind", "tile", "itemsize", "instructions", "registers"), MACHINE_CODE)
def test_cost_is_close_to_machine_code(kind: str, tile: Tile, itemsize: int, instructions: int, registers: int) -> None:
    assert cost.count_instructions(kind, tile, 32, itemsize) == pytest.approx(instructions, rel=0.2)
    asked = cost.count_registers(kind, tile, 32, itemsize)
    assert min(asked, cost.MAX_REGISTERS) == pytest.approx(registers, rel=0.35)


@pytest.mark.parametrize("length", [1, 7, 19])
@pytest.mark.parametrize(("dilation", "query_stride"), [(1, 1), (3, 1), (3, 2), (4, 2), (1, 3)])
def test_count_of_tiles(length: int, dilation: int, query_stride: int) -> None:
    window = Window.neighborhood(3, dilation=dilation, query_stride=query_stride)
    for by_key, cut in ((False, plan.query_tiles), (True, plan.key_tiles)):
        rows, columns = (len(cut(window.axes[0], length, side)) for side in (4, 8))
        assert cost.count_tiles(window, (length, length), (4, 8), by_key) == rows * columns
