"""The geometry, against the rule written as plain loops."""

from collections.abc import Callable

import pytest
import torch

from visionattn_kernels import Window
from visionattn_kernels.window import AxisWindow, plan_tiles, tabulate_axis, tile_axis


def keys_by_rule(axis: AxisWindow, length: int, query: int) -> set[int]:
    """Key positions of one query on one axis; positions outside the map stand for zero vectors."""
    position = query * axis.query_stride
    g, j = position % axis.dilation, position // axis.dilation
    group_length = len(range(g, length, axis.dilation))
    k, s = axis.kernel_size, axis.stride
    if axis.is_causal:
        lead = min(j // s * s + s - 1, group_length - 1)
        members = range(max(lead - k + 1, 0), j + 1)
    else:
        start = j // s * s + s // 2 - k // 2
        if axis.boundary == "shift":
            k = min(k, group_length)
            start = min(max(start, 0), group_length - k)
        members = range(start, start + k)
        if axis.boundary == "mask":
            members = [m for m in members if 0 <= m < group_length]
    return {g + axis.dilation * m for m in members}


AXES = [
    AxisWindow(k, s, d, c, boundary, r)
    for boundary in ("shift", "mask", "zero")
    for k, s, d, c, r in [
        (1, 1, 1, False, 1),
        (3, 1, 1, False, 1),
        (4, 1, 2, False, 1),
        (5, 2, 1, False, 1),
        (6, 6, 1, False, 2),
        (7, 4, 3, False, 1),
        (7, 1, 1, True, 1),
        (8, 3, 2, True, 1),
        (14, 8, 1, False, 2),
        (5, 5, 2, False, 3),
    ]
]


@pytest.mark.parametrize("length", [1, 2, 5, 12, 19])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_visible_keys_follow_the_rule(axis: AxisWindow, length: int) -> None:
    visible, offset = axis.visible(length)
    margin = axis.margin(length)
    for query in range(axis.num_queries(length)):
        positions = (visible[query].nonzero().flatten() - margin).tolist()
        assert set(positions) == keys_by_rule(axis, length, query)
        for position in positions:
            distance = (position - query * axis.query_stride) // axis.dilation
            assert offset[query, position + margin] == distance + axis.kernel_size - 1


@pytest.mark.parametrize("length", [1, 2, 5, 12, 19])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_tables_hold_the_rule_and_its_inverse(axis: AxisWindow, length: int) -> None:
    tables = tabulate_axis(axis, length, torch.device("cpu"))
    d = axis.dilation
    seen_by: dict[int, set[int]] = {key: set() for key in range(length)}
    queries = []
    for g in range(d):
        assert tables.keys[g] == len(range(g, length, d))
        for n in range(int(tables.queries[g])):
            query = int(tables.first_query[g]) + tables.query_step * n
            assert query * axis.query_stride == g + d * tables.index[query]
            members = range(int(tables.start[query]), int(tables.stop[query]))
            assert {g + d * m for m in members} == keys_by_rule(axis, length, query)
            queries.append(query)
            for m in members:
                if 0 <= m < tables.keys[g]:
                    seen_by[g + d * m].add(n)
    assert sorted(queries) == list(range(axis.num_queries(length)))
    for key, found in seen_by.items():
        assert set(range(int(tables.query_start[key]), int(tables.query_stop[key]))) == found


@pytest.mark.parametrize("tile", [1, 3, 4, 16])
@pytest.mark.parametrize("length", [1, 5, 12, 19])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_tiles_show_each_query_exactly_its_keys(axis: AxisWindow, length: int, tile: int) -> None:
    tiles = tile_axis(axis, length, tile)
    for query, slot in enumerate(tiles.slot.tolist()):
        t, place = divmod(slot, tiles.query.shape[1])
        assert tiles.query[t, place] == query
        seen = tiles.visible[tiles.pattern[t], place]
        inside = (seen & tiles.inside[t]).nonzero().flatten()
        keys = tiles.key[t, inside].tolist()
        assert len(set(keys)) == len(keys)
        expected = keys_by_rule(axis, length, query)
        assert set(keys) == {x for x in expected if 0 <= x < length}
        assert int(seen.sum()) == len(expected)  # those outside the map are zero vectors


def test_halo_blocks_equal_blocks_of_a_padded_map() -> None:
    """HaloNet pads the map to whole blocks, then cuts windows of block + 2 halo (arXiv 2103.12731, section 3)."""
    block, halo, length = 10, 3, 19  # the last map of H7 at 600 pixels: blocks of 10 and 9
    visible, _ = AxisWindow(block + 2 * halo, block, boundary="mask").visible(length)
    for query in range(length):
        first = query // block * block - halo
        window = range(max(first, 0), min(first + block + 2 * halo, length))
        assert visible[query].nonzero().flatten().tolist() == list(window)


def test_windows_with_stride_of_the_kernel_do_not_overlap() -> None:
    visible, _ = AxisWindow(4, 4, boundary="mask").visible(10)
    assert visible.int().tolist() == [[int(q // 4 == k // 4) for k in range(10)] for q in range(10)]


def test_count_of_pairs() -> None:
    assert Window.neighborhood(7).count_pairs((56, 56)) == 56 * 56 * 49
    assert Window.neighborhood(7).count_pairs((4, 9)) == 4 * 9 * 4 * 7
    assert Window.neighborhood(3, is_causal=True).count_pairs((1, 4)) == 1 + 2 + 3 + 3


def test_plans_are_cached() -> None:
    device = torch.device("cpu")
    plans = [plan_tiles(Window.neighborhood(3), (5, 6), (2, 2), device) for _ in range(2)]
    assert plans[0] is plans[1]


def test_to_ints_and_from_ints_are_inverse() -> None:
    window = Window.neighborhood((5, 7), (2, 3), (1, 2), (False, True), "zero", (2, 1))
    assert Window.from_ints(window.to_ints()) == window


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 0}, r"kernel_size must be an int >= 1.*\(0, 0\)"),
        ({"kernel_size": 7.0}, "kernel_size"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size"),
        ({"kernel_size": 3, "stride": 4}, "stride must be <= kernel_size"),
        ({"kernel_size": 3, "dilation": 0}, "dilation"),
        ({"kernel_size": 3, "is_causal": 1}, "is_causal"),
        ({"kernel_size": 3, "boundary": "wrap"}, "boundary must be one of shift, mask, zero; got 'wrap'"),
        ({"kernel_size": 3, "query_stride": -1}, "query_stride"),
    ],
)
def test_invalid_window_argument_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Window.neighborhood(**arguments)  # type: ignore[arg-type]


def test_window_constructors_are_the_rule_of_their_kind() -> None:
    assert Window.create(7, 2) == Window.neighborhood(7, 2) == Window((7, 7), (2, 2))
    assert Window.sequence(5, dilation=2) == Window((1, 5), dilation=(1, 2))
    assert Window.halo(8, (3, 1), query_stride=2) == Window((14, 10), (8, 8), boundary="mask", query_stride=(2, 2))
    assert Window.blocks((7, 4)) == Window((7, 4), (7, 4), boundary="mask")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window.halo(0, 1), "block_size must be an int >= 1, or one per axis; got 0"),
        (lambda: Window.halo(8, -1), "halo_size must be an int >= 0, or one per axis; got -1"),
        (lambda: Window.halo(8, 1, "shift"), "boundary must be 'mask' or 'zero' in halo attention; got 'shift'"),
        (lambda: Window.blocks(2.5), "window_size must be an int >= 1, or one per axis; got 2.5"),
        (lambda: Window.neighborhood(3, 4), "stride must be <= kernel_size"),
    ],
)
def test_window_constructor_names_the_argument_out_of_bounds(make: Callable[[], Window], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
