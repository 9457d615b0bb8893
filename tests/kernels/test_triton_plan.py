"""Cutting of maps for the Triton kernels, and sums of the parts of the bias gradient."""

import pytest
import torch

from visionattn_kernels.attention.triton import plan
from visionattn_kernels.window import AxisWindow, tabulate_axis

triton = pytest.importorskip("triton")

from visionattn_kernels.attention.triton import sums  # noqa: E402

AXES = [
    AxisWindow(k, s, d, c, boundary, r)  # type: ignore[arg-type]
    for boundary in ("shift", "mask", "zero")
    for k, s, d, c, r in [(3, 1, 1, False, 1), (7, 4, 3, False, 1), (4, 1, 2, True, 1), (14, 8, 1, False, 2)]
] + [AxisWindow(5, 5, 2, False, "mask", 3)]


@pytest.mark.parametrize("length", [1, 7, 19])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_tiles_of_an_axis(axis: AxisWindow, length: int) -> None:
    """Tiles hold each query and key once, and the intervals that their members see or are seen by."""
    t = tabulate_axis(axis, length, torch.device("cpu"))
    members = []
    for first, count, lo, hi, every_lo, every_hi in plan.query_tiles(axis, length, 4).tolist():
        queries = [first + t.query_step * i for i in range(count)]
        sees = [set(range(int(t.start[q]), int(t.stop[q]))) for q in queries]
        assert len({q * axis.query_stride % axis.dilation for q in queries}) == 1
        assert (lo, hi) == (min(map(min, sees)), max(map(max, sees)) + 1)
        assert set(range(every_lo, every_hi)) == set.intersection(*sees)
        members += queries
    assert sorted(members) == list(range(axis.num_queries(length)))
    members = []
    for first, count, lo, hi, every_lo, every_hi in plan.key_tiles(axis, length, 4).tolist():
        keys = [first + axis.dilation * i for i in range(count)]
        first_query = int(t.first_query[first % axis.dilation])
        seen_by = [
            {q for q in range(first_query, axis.num_queries(length), t.query_step)
             if q * axis.query_stride % axis.dilation == first % axis.dilation
             and t.start[q] <= (key - key % axis.dilation) // axis.dilation < t.stop[q]}
            for key in keys
        ]  # fmt: skip
        assert set.union(*seen_by) <= {first_query + t.query_step * n for n in range(lo, hi)}
        assert {first_query + t.query_step * n for n in range(every_lo, every_hi)} == set.intersection(*seen_by)
        members += keys
    assert sorted(members) == list(range(length))


@pytest.mark.parametrize("length", [1, 7, 19])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_places_cover_the_keys_of_tiles(axis: AxisWindow, length: int) -> None:
    """Each key that a tile sees is in one of the rectangles, counted from the tile's first query."""
    tiles, places = plan.query_tiles(axis, length, 4).tolist(), plan.places_of(axis, length, 4, 8)
    index = tabulate_axis(axis, length, torch.device("cpu")).index
    for first, *_, lo, hi, _, _ in tiles:
        start = int(index[first]) + places.origin
        assert start <= lo
        assert hi <= start + 8 * places.total


@pytest.mark.parametrize(("queries", "query_stride"), [(1, 1), (4, 1), (4, 2), (2, 3)])
def test_sum_of_diagonals(queries: int, query_stride: int) -> None:
    axis, keys, origin = AxisWindow(9, query_stride=query_stride), 5, -3
    x = torch.randn(2, queries, keys, dtype=torch.float64)
    expected = torch.zeros(2, 17, dtype=torch.float64)
    for i in range(queries):
        for j in range(keys):
            entry = origin + j - i * query_stride + 8
            if 0 <= entry < 17:
                expected[:, entry] += x[:, i, j]
            else:
                x[:, i, j] = 0
    torch.testing.assert_close(sums.sum_diagonals(x, axis, origin), expected)
