"""Laws of windows on drawn axes: the definition in kernels/README.md and its consequences."""

from dataclasses import replace
from typing import Any

import torch
from holding import holds_for
from hypothesis import strategies as st
from torch import Tensor

from visionattn_kernels import Window
from visionattn_kernels.window import BOUNDARIES, AxisWindow, plan_tiles, tabulate_axis

LENGTHS = st.integers(1, 24)
CPU = torch.device("cpu")


@st.composite
def axes(draw: Any, boundaries: tuple[str, ...] = BOUNDARIES, max_query_stride: int = 3) -> AxisWindow:
    kernel_size = draw(st.integers(1, 9))
    return AxisWindow(
        kernel_size,
        draw(st.integers(1, kernel_size)),
        draw(st.integers(1, 4)),
        draw(st.booleans()),
        draw(st.sampled_from(boundaries)),  # type: ignore[arg-type]
        draw(st.integers(1, max_query_stride)),
    )


def sees(axis: AxisWindow, length: int, position: int, key: int) -> bool:
    """Return whether a query sees a key by the definition; the key may lie beyond the map."""
    k, s, d = axis.kernel_size, axis.stride, axis.dilation
    if (key - position) % d:
        return False  # another dilation group
    g, j = position % d, position // d
    group_length = sum(x % d == g for x in range(length))
    m = (key - g) // d
    if axis.is_causal:
        lead = min(j - j % s + s - 1, group_length - 1)
        return max(lead - k + 1, 0) <= m <= j
    start = j - j % s + s // 2 - k // 2
    if axis.boundary == "shift":  # moves inward
        while start + k > group_length and start > 0:
            start -= 1
        start = max(start, 0)
    return start <= m < start + k and (axis.boundary == "zero" or 0 <= m < group_length)


def inside(axis: AxisWindow, length: int) -> Tensor:
    """Return a mask of the keys of the map that each query sees, [Q, L]."""
    margin = axis.margin(length)
    return axis.visible(length)[0][:, margin : margin + length]


@holds_for(axes(), LENGTHS, few=60)
def test_query_sees_the_keys_of_the_definition(axis: AxisWindow, length: int) -> None:
    visible, offset = axis.visible(length)
    margin, far = axis.margin(length), 4 * (9 + 9)
    for query in range(axis.num_queries(length)):
        position = query * axis.query_stride
        expected = [key for key in range(-far, length + far) if sees(axis, length, position, key)]
        assert (visible[query].nonzero().flatten() - margin).tolist() == expected
        for key in expected:
            assert offset[query, key + margin] == (key - position) // axis.dilation + axis.kernel_size - 1


@holds_for(axes(), LENGTHS)
def test_number_of_keys_is_bounded_by_the_kernel_size(axis: AxisWindow, length: int) -> None:
    counts = axis.visible(length)[0].sum(1)
    _, index, group = axis.groups(length)
    if axis.is_causal:
        assert (counts <= (index + 1).clamp(max=axis.kernel_size)).all()
    elif axis.boundary == "shift":
        assert torch.equal(counts, group.clamp(max=axis.kernel_size))
    elif axis.boundary == "mask":
        assert (counts <= axis.kernel_size).all()
    else:
        assert (counts == axis.kernel_size).all()
    if axis.stride == 1 or axis.stride == axis.kernel_size:
        queries = torch.arange(len(counts))
        assert inside(axis, length)[queries, queries * axis.query_stride].all(), "a query sees its own position"


@holds_for(axes(), axes(), LENGTHS, LENGTHS)
def test_window_is_the_product_of_its_axes(rows: AxisWindow, columns: AxisWindow, height: int, width: int) -> None:
    columns, size = replace(columns, boundary=rows.boundary), (height, width)
    window = both(rows, columns)
    assert window.axes == (rows, columns)
    assert Window.from_ints(window.to_ints()) == window
    pairs = [int(axis.visible(length)[0].sum()) for axis, length in zip(window.axes, size, strict=True)]
    assert window.count_pairs(size) == pairs[0] * pairs[1]


@holds_for(axes(max_query_stride=1), LENGTHS)
def test_dilation_equals_interleaved_maps(axis: AxisWindow, length: int) -> None:
    dense = replace(axis, dilation=1)
    expected = torch.zeros(length, length, dtype=torch.bool)
    for group in range(min(axis.dilation, length)):
        members = torch.arange(group, length, axis.dilation)
        expected[members[:, None], members] = inside(dense, len(members))
    assert torch.equal(inside(axis, length), expected)


@holds_for(axes(), LENGTHS)
def test_query_stride_only_drops_queries(axis: AxisWindow, length: int) -> None:
    everywhere = inside(replace(axis, query_stride=1), length)
    assert torch.equal(inside(axis, length), everywhere[:: axis.query_stride])


@holds_for(axes(), LENGTHS)
def test_mask_and_zero_boundaries_see_the_same_keys(axis: AxisWindow, length: int) -> None:
    masked, padded = (inside(replace(axis, boundary=boundary), length) for boundary in ("mask", "zero"))  # type: ignore[arg-type]
    assert torch.equal(masked, padded)


@holds_for(axes(("shift",), 1), LENGTHS)
def test_window_as_large_as_its_group_covers_the_group(axis: AxisWindow, length: int) -> None:
    large = replace(axis, kernel_size=length + 2, stride=1, is_causal=False)
    position = torch.arange(length)
    assert torch.equal(inside(large, length), (position[:, None] - position) % axis.dilation == 0)


@holds_for(axes(("mask",), 1), LENGTHS)
def test_stride_of_kernel_size_partitions_the_map(axis: AxisWindow, length: int) -> None:
    block = torch.arange(length) // axis.kernel_size
    windows = AxisWindow(axis.kernel_size, axis.kernel_size, boundary="mask")
    assert torch.equal(inside(windows, length), block[:, None] == block)


@holds_for(axes(), LENGTHS)
def test_causal_window_sees_no_later_keys_with_any_boundary(axis: AxisWindow, length: int) -> None:
    causal = replace(axis, is_causal=True)
    visible = inside(causal, length)
    position = torch.arange(causal.num_queries(length)) * causal.query_stride
    assert not (visible & (torch.arange(length) > position[:, None])).any()
    for boundary in BOUNDARIES:
        assert torch.equal(visible, inside(replace(causal, boundary=boundary), length))  # type: ignore[arg-type]
    sliding = replace(axis, kernel_size=length + 1, stride=1, is_causal=True, dilation=1, query_stride=1)
    assert torch.equal(inside(sliding, length), torch.ones(length, length, dtype=torch.bool).tril())


@holds_for(axes(max_query_stride=1), st.integers(1, 60))
def test_windows_in_the_interior_move_with_their_queries(axis: AxisWindow, length: int) -> None:
    step = axis.stride * axis.dilation
    visible = inside(axis, length)
    reach = (axis.kernel_size + axis.stride) * axis.dilation
    for query in range(reach, length - reach - step):
        assert torch.equal(visible[query + step, step:], visible[query, : length - step])


@holds_for(axes(max_query_stride=1), LENGTHS)
def test_odd_sliding_windows_are_mirror_symmetric(axis: AxisWindow, length: int) -> None:
    odd = replace(axis, kernel_size=axis.kernel_size | 1, stride=1, is_causal=False)
    visible = inside(odd, length)
    assert torch.equal(visible, visible.flip(0, 1))


@holds_for(axes(), LENGTHS, few=60)
def test_key_tables_list_the_queries_of_each_key(axis: AxisWindow, length: int) -> None:
    tables, visible = tabulate_axis(axis, length, CPU), inside(axis, length)
    inverse = torch.zeros_like(visible)
    for key in range(length):
        group = key % axis.dilation
        number = torch.arange(int(tables.query_start[key]), int(tables.query_stop[key]))
        inverse[tables.first_query[group] + tables.query_step * number, key] = True
    assert torch.equal(inverse, visible)
    assert int(tables.queries.sum()) == len(visible)


@holds_for(axes(), axes(), st.integers(1, 12), st.integers(1, 12), st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_tiles_hold_each_query_once_with_its_keys(
    rows: AxisWindow, columns: AxisWindow, height: int, width: int, tile: tuple[int, int]
) -> None:
    window = both(rows, replace(columns, boundary=rows.boundary))
    plan = plan_tiles(window, (height, width), tile, CPU)
    num_queries = window.num_queries((height, width))
    queries = torch.arange(num_queries[0] * num_queries[1])
    assert torch.equal(plan.query.flatten()[plan.slot], queries)
    padding = torch.zeros_like(plan.query, dtype=torch.bool) if plan.padding is None else plan.padding
    assert torch.equal(plan.query[~padding].sort().values, queries)

    tiles, places = plan.slot // plan.query.shape[1], plan.slot % plan.query.shape[1]
    shown = plan.visible[plan.pattern[tiles], places]
    axis_windows = [axis.visible(length) for axis, length in zip(window.axes, (height, width), strict=True)]
    assert torch.equal(shown.sum(1), torch.outer(*(visible.sum(1) for visible, _ in axis_windows)).flatten())

    inner = shown if plan.outside is None else shown & ~plan.outside[tiles]
    found = torch.zeros(len(queries), height * width, dtype=torch.int64)
    found.scatter_add_(1, plan.key[tiles], inner.long())
    by_axis = [inside(axis, length).long() for axis, length in zip(window.axes, (height, width), strict=True)]
    assert torch.equal(found, torch.kron(*by_axis)), "each key of the window once, and no other"


def both(rows: AxisWindow, columns: AxisWindow) -> Window:
    pairs = ((getattr(rows, name), getattr(columns, name)) for name in ("kernel_size", "stride", "dilation"))
    causal, query_stride = (rows.is_causal, columns.is_causal), (rows.query_stride, columns.query_stride)
    return Window.create(*pairs, causal, rows.boundary, query_stride)
