"""Plans of the host for the kernels: tiles of each axis, what they meet, and which shapes meet least. No triton.

A tile lies inside one dilation group of each axis, where neighbouring keys are neighbours. The tables are cut from
`tabulate_axis`, the written-out window rule, and stay on the CPU: kernels compute the rule themselves, see `rule`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.tracing import outside_modes
from visionattn_kernels.window import AxisWindow, Window, tabulate_axis

MAX_CACHED_TABLES = 512
"""Tables kept: one per axis, map length and tile size; each takes 24 bytes per tile."""

Rectangle = tuple[int, int]


class Tile(NamedTuple):
    """Tile that one program works on.

    Attributes:
        query: Height and width of a rectangle of queries, powers of two with a product of at least 16.
        key: Height and width of a rectangle of keys, likewise.
        num_warps: Warps of a program.
        num_stages: Loads in flight, counted in turns of the inner loop.
        max_registers: Of a thread, on NVIDIA's devices; 0 leaves it to the compiler.
    """

    query: Rectangle
    key: Rectangle
    num_warps: int
    num_stages: int
    max_registers: int = 0


@lru_cache(maxsize=MAX_CACHED_TABLES)
@outside_modes
def query_tiles(axis: AxisWindow, length: int, size: int) -> Tensor:
    """Cut tiles of `size` queries, `[T, 6]` int32 on the CPU.

    Columns: position of the first query, number of queries; the interval of keys, counted in the dilation group, that
    any query of the tile sees, and the one that each sees.
    """
    t = tabulate_axis(axis, length, torch.device("cpu"))
    group, number = _split(t.queries, size)
    first = t.first_query[group] + t.query_step * number * size
    count = (t.queries[group] - number * size).clamp(max=size)
    last = first + t.query_step * (count - 1)
    columns = (first, count, t.start[first], t.stop[last], t.start[last], t.stop[first])
    return torch.stack(columns, 1).int()


@lru_cache(maxsize=MAX_CACHED_TABLES)
@outside_modes
def key_tiles(axis: AxisWindow, length: int, size: int) -> Tensor:
    """Cut tiles of `size` keys, `[T, 6]` int32 on the CPU.

    Columns: position of the first key, number of keys; the interval of queries, counted in the dilation group, that see
    any key of the tile, and the one that see all.
    """
    t = tabulate_axis(axis, length, torch.device("cpu"))
    group, number = _split(t.keys, size)
    index = number * size
    first = group + axis.dilation * index
    count = (t.keys[group] - index).clamp(max=size)
    last = first + axis.dilation * (count - 1)
    starts, stops = t.query_start, t.query_stop
    columns = (first, count, starts[first], stops[last], starts[last], stops[first])
    return torch.stack(columns, 1).int()


def _split(counts: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return group and number in it of each tile, if a group has `counts` members."""
    tiles = (counts + size - 1) // size
    group = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), tiles)
    first = tiles.cumsum(0) - tiles
    return group, torch.arange(len(group), device="cpu") - first[group]


def has_interior(problem: Problem, tile: Tile, by_key: bool) -> bool:
    """Return whether kernels gain from rectangles in which no pair is masked: there are some, and no table of biases.

    The bias of a masked pair is not loaded, so a table asks for the rule anyway.
    """
    p = problem
    return p.rpb is None and all(
        _has_interior(*args, by_key) for args in zip(p.window.axes, p.size, tile.query, tile.key, strict=True)
    )


@lru_cache(maxsize=MAX_CACHED_TABLES)
@outside_modes
def _has_interior(axis: AxisWindow, length: int, query: int, key: int, by_key: bool) -> bool:
    """Return whether some rectangle of a tile, counted from what the tile meets, is wholly inside."""
    tiles, size, step = (
        (key_tiles(axis, length, key), key, query) if by_key else (query_tiles(axis, length, query), query, key)
    )
    lo, hi, every_lo, every_hi = tiles[tiles[:, 1] == size, 2:].unbind(1)
    first = lo + (every_lo - lo + step - 1) // step * step
    return bool((first + step <= torch.minimum(every_hi, hi)).any())


class Places(NamedTuple):
    """Key rectangles on one axis, counted from the first query of a tile.

    Attributes:
        total: How many places there are.
        origin: Key of the first one, less the tile's first query.
    """

    total: int
    origin: int


@lru_cache(maxsize=MAX_CACHED_TABLES)
@outside_modes
def places_of(axis: AxisWindow, length: int, query: int, key: int) -> Places:
    """Return places of rectangles of `key` keys that cover what tiles of `query` queries see."""
    tiles = query_tiles(axis, length, query)
    index = tabulate_axis(axis, length, torch.device("cpu")).index[tiles[:, 0].long()]
    lo, hi = tiles[:, 2] - index, tiles[:, 3] - index
    # Rectangles are aligned with what most tiles see.
    aligned = int(lo.mode().values)
    least = int((lo - aligned).min()) // key
    most = -(int((aligned - hi).min()) // key)
    return Places(most - least, aligned + least * key)


@lru_cache(maxsize=MAX_CACHED_TABLES)
@outside_modes
def _work(axis: AxisWindow, length: int, query: int, key: int, by_key: bool) -> int:
    """Count the pairs of tiles and rectangles of an axis."""
    tiles, step = (key_tiles(axis, length, key), query) if by_key else (query_tiles(axis, length, query), key)
    return int(((tiles[:, 3] - tiles[:, 2] + step - 1) // step).sum())


@lru_cache(maxsize=1024)
@outside_modes
def best_rectangles(
    window: Window, size: tuple[int, int], num_queries: int, num_keys: int, by_key: bool
) -> tuple[int, Rectangle, Rectangle]:
    """Return the shape of tiles of `num_queries` and `num_keys` with the fewest pairs of rectangles to multiply.

    Returns:
        The number of pairs, and height and width of the rectangle of queries and of that of keys. Among equals, keys
        are wide: then fewer columns of rectangles cover a window.
    """
    shapes = [
        (_halves(num_queries, i), _halves(num_keys, j))
        for i in range(num_queries.bit_length())
        for j in range(num_keys.bit_length())
    ]
    rows, columns = window.axes

    def pairs(query: Rectangle, key: Rectangle) -> int:
        return _work(rows, size[0], query[0], key[0], by_key) * _work(columns, size[1], query[1], key[1], by_key)

    return min(
        ((pairs(query, key), query, key) for query, key in shapes), key=lambda x: (x[0], -x[2][1], abs(x[1][1] - 8))
    )


def _halves(area: int, exponent: int) -> Rectangle:
    return area >> exponent, 1 << exponent


def query_spacing(axis: AxisWindow) -> int:
    """Return the distance of neighbouring queries of a dilation group, in keys of that group."""
    return axis.query_stride // math.gcd(axis.dilation, axis.query_stride)
