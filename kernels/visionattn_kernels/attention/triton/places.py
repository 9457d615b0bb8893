"""Tiles of a program: where its queries and keys are, and which pairs of them see each other.

Shape letters: M queries of a tile, N keys of a tile, both row by row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from visionattn_kernels.attention.triton.given import Given, Sizes
from visionattn_kernels.attention.triton.rule import (
    Axis,
    Group,
    interval,
    interval_of_queries,
    key_strip,
    query_strip,
)


class Place(NamedTuple):
    """Place of a program: image, head, and rows and columns of a tile, each a `Strip`."""

    batch: Any
    head: Any
    rows: Any
    columns: Any


class Queries(NamedTuple):
    """Some queries `[M]`: where they are.

    Attributes:
        row, column: In the query map.
        valid: Whether there is one.
        index_h, index_w: Own position in the dilation group of each axis, in keys.
    """

    row: Any
    column: Any
    valid: Any
    index_h: Any
    index_w: Any


class Rows(NamedTuple):
    """Rows of scores, one per query or one per key of a tile: which rectangle of the other kind each meets.

    Attributes:
        start_h, stop_h, start_w, stop_w: The rectangle, counted in the dilation group.
        origin: Where in the table of positional bias a row meets number 0, 0 of the other kind.
    """

    start_h: Any
    stop_h: Any
    start_w: Any
    stop_w: Any
    origin: Any


@triton.jit
def locate_queries(given: Given, sizes: Sizes, QUERY_H: tl.constexpr, QUERY_W: tl.constexpr) -> Place:
    """Return the tile of queries of this program; the heads of a tile, neighbours in memory, run together."""
    tile, head = tl.program_id(0) // sizes.heads, tl.program_id(0) % sizes.heads
    rows, columns = strips_of_queries(
        given, sizes, tile // sizes.tiles_w % sizes.tiles_h, tile % sizes.tiles_w, QUERY_H, QUERY_W
    )
    return Place(tile // (sizes.tiles_w * sizes.tiles_h), head, rows, columns)


@triton.jit
def locate_keys(given: Given, sizes: Sizes, KEY_H: tl.constexpr, KEY_W: tl.constexpr) -> Place:
    """Return the tile of keys of this program, likewise."""
    tile, head = tl.program_id(0) // sizes.heads, tl.program_id(0) % sizes.heads
    tile_h, tile_w = tile // sizes.tiles_w % sizes.tiles_h, tile % sizes.tiles_w
    rows = key_strip(given.rows, sizes.queries_h, sizes.keys_h, tile_h, KEY_H)
    columns = key_strip(given.columns, sizes.queries_w, sizes.keys_w, tile_w, KEY_W)
    return Place(tile // (sizes.tiles_w * sizes.tiles_h), head, rows, columns)


@triton.jit
def strips_of_queries(
    given: Given, sizes: Sizes, tile_h: tl.tensor, tile_w: tl.tensor, QUERY_H: tl.constexpr, QUERY_W: tl.constexpr
) -> tl.tuple:
    """Return the rows and the columns of a tile of queries."""
    rows = query_strip(given.rows, sizes.queries_h, sizes.keys_h, tile_h, QUERY_H)
    return rows, query_strip(given.columns, sizes.queries_w, sizes.keys_w, tile_w, QUERY_W)


@triton.jit
def place_queries(given: Given, place: Place, number_h: tl.tensor, number_w: tl.tensor, valid: tl.tensor) -> Queries:
    """Return the queries of these numbers in the dilation groups of a tile."""
    rows, columns, group_h, group_w = given.rows, given.columns, place.rows.group, place.columns.group
    return Queries(
        group_h.first_query + rows.step * number_h,
        group_w.first_query + columns.step * number_w,
        valid,
        group_h.first_index + rows.spacing * number_h,
        group_w.first_index + columns.spacing * number_w,
    )


@triton.jit
def tile_queries(given: Given, place: Place, QUERY_H: tl.constexpr, QUERY_W: tl.constexpr) -> tl.tuple:
    """Return the queries of a tile, and the rows of scores that they are."""
    m = tl.arange(0, QUERY_H * QUERY_W)
    h, w = m // QUERY_W, m % QUERY_W
    rows, columns = place.rows, place.columns
    valid = (h < rows.count) & (w < columns.count)
    queries = place_queries(given, place, rows.first + h, columns.first + w, valid)
    start_h, stop_h = interval(given.rows, queries.index_h, rows.group.num_keys)
    start_w, stop_w = interval(given.columns, queries.index_w, columns.group.num_keys)
    origin = bias_entry(given, -queries.index_h, -queries.index_w)
    return queries, Rows(start_h, stop_h, start_w, tl.where(valid, stop_w, start_w), origin)


@triton.jit
def tile_keys(given: Given, place: Place, KEY_H: tl.constexpr, KEY_W: tl.constexpr) -> tl.tuple:
    """Return row, column and presence of the keys of a tile, and the rows of scores that they are."""
    n = tl.arange(0, KEY_H * KEY_W)
    rows, columns = place.rows, place.columns
    key_h, key_w = rows.first + n // KEY_W, columns.first + n % KEY_W
    row, inside_h = place_keys(given.rows, rows.group, key_h, rows.first + rows.count)
    column, inside_w = place_keys(given.columns, columns.group, key_w, columns.first + columns.count)
    start_h, stop_h = interval_of_queries(given.rows, rows.group, key_h)
    start_w, stop_w = interval_of_queries(given.columns, columns.group, key_w)
    inside = inside_h & inside_w
    origin = bias_entry(given, key_h - rows.group.first_index, key_w - columns.group.first_index)
    return row, column, inside, Rows(start_h, stop_h, start_w, tl.where(inside, stop_w, start_w), origin)


@triton.jit
def bias_entry(given: Given, offset_h: tl.tensor, offset_w: tl.tensor) -> tl.tensor:
    """Return which entry of the table of positional bias stands for an offset: key less query."""
    width: tl.constexpr = 2 * given.columns.kernel_size - 1
    return (offset_h + given.rows.kernel_size - 1) * width + offset_w + given.columns.kernel_size - 1


@triton.jit
def place_keys(axis: Axis, group: Group, key: tl.tensor, stop: tl.tensor) -> tl.tuple:
    """Return positions of keys of a dilation group, and whether they are in the map and before `stop`.

    What is not, is loaded as zeros; the rule says whether it takes part.
    """
    return group.first_key + axis.dilation * key, (key >= 0) & (key < tl.minimum(group.num_keys, stop))


@triton.jit
def meet(rows: Rows, first_h: tl.tensor, first_w: tl.tensor, HIGH: tl.constexpr, WIDE: tl.constexpr) -> tl.tuple:
    """Return numbers and limits: rows meet those members of a rectangle whose number, unsigned, is below the limit."""
    i = tl.arange(0, HIGH * WIDE)
    h = (first_h + i // WIDE)[None, :] - rows.start_h[:, None]
    w = (first_w + i % WIDE)[None, :] - rows.start_w[:, None]
    high, wide = (rows.stop_h - rows.start_h).to(tl.uint32), (rows.stop_w - rows.start_w).to(tl.uint32)
    return h.to(tl.uint32), tl.where(w.to(tl.uint32) < wide[:, None], high[:, None], 0)


@triton.jit
def see(rows: Rows, first_h: tl.tensor, first_w: tl.tensor, HIGH: tl.constexpr, WIDE: tl.constexpr) -> tl.tensor:
    """Return which members of a rectangle from `first_h, first_w` each row of scores meets."""
    number, limit = meet(rows, first_h, first_w, HIGH, WIDE)
    return number < limit
