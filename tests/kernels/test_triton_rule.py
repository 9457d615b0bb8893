"""The window rule as the Triton kernels compute it, against the written-out rule, on random axes."""

import random

import pytest
import torch

from tests.kernels.interpreter import NOT_INTERPRETED
from visionattn_kernels.window import BOUNDARIES, AxisWindow, tabulate_axis

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from visionattn_kernels.attention.triton.rule import Axis, as_axis, key_strip, query_strip  # noqa: E402

pytestmark = pytest.mark.skipif(NOT_INTERPRETED is not None, reason=str(NOT_INTERPRETED))

MAX_TILES = 64
COLUMNS = 9


@triton.jit
def write_strips(
    axis: Axis,
    num_queries: tl.tensor,
    num_keys: tl.tensor,
    out: tl.tensor,
    SIZE: tl.constexpr,
    BY_KEY: tl.constexpr,
    TILES: tl.constexpr,
) -> None:
    """Write `[9, TILES]`: group, first member and number of members of each tile, and what the tile meets."""
    tile = tl.arange(0, TILES)
    if BY_KEY:
        strip = key_strip(axis, num_queries, num_keys, tile, SIZE)
    else:
        strip = query_strip(axis, num_queries, num_keys, tile, SIZE)
    group, span = strip.group, strip.span
    tl.store(out + tile, group.first_query)
    tl.store(out + TILES + tile, group.num_queries)
    tl.store(out + 2 * TILES + tile, group.first_key)
    tl.store(out + 3 * TILES + tile, strip.first)
    tl.store(out + 4 * TILES + tile, strip.count)
    tl.store(out + 5 * TILES + tile, span.lo)
    tl.store(out + 6 * TILES + tile, span.hi)
    tl.store(out + 7 * TILES + tile, span.every_lo)
    tl.store(out + 8 * TILES + tile, span.every_hi)


def draw_axis(rng: random.Random) -> tuple[AxisWindow, int]:
    """Draw a rule of any kind, and a length that the dilation does not exceed."""
    kernel, dilation, length = rng.randint(1, 14), rng.choice((1, 1, 2, 3, 4, 6)), rng.randint(6, 40)
    stride = rng.choice((1, 1, kernel, rng.randint(1, kernel)))
    boundary = rng.choice(BOUNDARIES)
    axis = AxisWindow(kernel, stride, dilation, rng.random() < 0.25, boundary, rng.choice((1, 1, 2, 3, 4, 6)))  # type: ignore[arg-type]
    return axis, length


def strips(axis: AxisWindow, length: int, size: int, by_key: bool) -> list[list[int]]:
    """Return the columns of `write_strips` of each tile of an axis."""
    rule, queries = as_axis(axis), axis.num_queries(length)
    count = rule.num_key_tiles(length, size) if by_key else rule.num_query_tiles(queries, size)
    out = torch.empty(COLUMNS, MAX_TILES, dtype=torch.int32)
    assert count <= MAX_TILES
    write_strips[(1,)](rule, queries, length, out, SIZE=size, BY_KEY=by_key, TILES=MAX_TILES)
    return out.mT[:count].tolist()


def assert_strip_meets(strip: list[int], size: int, meets: list[set[int]]) -> None:
    """Check the span of a tile against the sets that its members meet."""
    count, lo, hi, every_lo, every_hi = strip[4:]
    assert set.union(set(), *meets) <= set(range(lo, hi))
    every = set(range(every_lo, every_hi))
    assert every == (set.intersection(*meets) if count == size else set())
    if size == 1 and meets:
        assert set(range(lo, hi)) == meets[0]


@pytest.mark.parametrize(
    "seeds", [range(40), pytest.param(range(40, 2000), marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("size", [1, 4])
def test_tiles_and_what_they_meet(size: int, seeds: range) -> None:
    """Tiles hold each query and each key once, and the intervals that their members see or are seen by."""
    for seed in seeds:
        axis, length = draw_axis(random.Random(seed))
        t = tabulate_axis(axis, length, torch.device("cpu"))
        start, stop = t.start.tolist(), t.stop.tolist()
        queries, keys = [], []
        for strip in strips(axis, length, size, by_key=False):
            first_query, num_queries, first_key, first, count = strip[:5]
            members = [first_query + t.query_step * i for i in range(first, first + max(count, 0))]
            assert first + count <= num_queries
            assert all(q * axis.query_stride % axis.dilation == first_key for q in members)
            assert_strip_meets(strip, size, [set(range(start[q], stop[q])) for q in members])
            queries += members
        for strip in strips(axis, length, size, by_key=True):
            first_query, num_queries, first_key, first, count = strip[:5]
            numbered = [(n, first_query + t.query_step * n) for n in range(num_queries)]
            assert all(q * axis.query_stride % axis.dilation == first_key for _, q in numbered)
            members = [*range(first, first + max(count, 0))]
            meets = [{n for n, q in numbered if start[q] <= key < stop[q]} for key in members]
            assert_strip_meets(strip, size, meets)
            keys += [first_key + axis.dilation * key for key in members]
        assert sorted(queries) == list(range(axis.num_queries(length))), axis
        assert sorted(keys) == list(range(length)), axis
