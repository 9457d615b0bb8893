"""Parts that the kernels share: arguments, places, the queries of a tile, scores and biases.

Shape letters: M queries of a tile, N keys of a tile, both row by row; R entries of a relative table.

Scores are kept without the scale: `q.k + bias / scale`, where a pair is masked minus infinity. All that is not the
product is where it starts from, so it costs no operation; the scale and the base of the exponent are one factor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton.maps import Map, address, as_map, as_tokens, load_scattered, load_vectors
from visionattn_kernels.attention.triton.precision import product_precision
from visionattn_kernels.attention.triton.rule import (
    Axis,
    Group,
    Span,
    Strip,
    as_axis,
    interval,
    interval_of_queries,
    key_strip,
    partly,
    query_strip,
)

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)

LEAST_SCALE = 1e-6
"""Smaller scales, zero, and those above its inverse are multiplied into the queries; of negative ones the sign."""


class Sizes(NamedTuple):
    """Sizes for which kernels are not compiled again: images, heads, both maps, extra tokens, tiles on each axis."""

    batch: int
    heads: int
    queries_h: int
    queries_w: int
    keys_h: int
    keys_w: int
    num_extra: int
    tiles_h: int = 1
    tiles_w: int = 1

    def cut(self, given: Given, tile: tuple[int, int], by_key: bool) -> Sizes:
        """Return the same with numbers of tiles: of keys, or of queries."""
        axes, keys, queries = (given.rows, given.columns), (self.keys_h, self.keys_w), (self.queries_h, self.queries_w)
        lengths, groups = (keys, [x.dilation for x in axes]) if by_key else (queries, [x.step for x in axes])
        tiles_h, tiles_w = (
            count * triton.cdiv(triton.cdiv(length, count), size)
            for count, length, size in zip(groups, lengths, tile, strict=True)
        )
        return self._replace(tiles_h=tiles_h, tiles_w=tiles_w)

    def grid(self) -> tuple[int]:
        """Return one program per tile, head and image."""
        return (self.batch * self.tiles_h * self.tiles_w * self.heads,)


class Given(NamedTuple):
    """A problem as every kernel receives it, see `Problem`; tensors that are absent or empty are None.

    Attributes:
        q, k, v: Heads-last maps.
        extra_k, extra_v: Tokens, as maps of one column.
        rpb: Contiguous `[heads, R_h, R_w]`.
        rel_h, rel_w: Maps of R_h and R_w channels.
        scale: Factor of the products `q.k`, positive.
        rows, columns: The axes.
        grad_out: Heads-last gradient of the output, for backward kernels.
        sums: Map of two channels, for backward kernels: the log-sum-exp in base 2, and delta, which is
            sum(out grad_out) - grad_lse. A score has the gradient weight (grad_weight - delta).
        by_thread: See `load_scattered`.
        precision: How products of float32 are rounded.
    """

    q: Map
    k: Map
    v: Map
    rpb: Any
    rel_h: Map | None
    rel_w: Map | None
    extra_k: Any
    extra_v: Any
    rows: Axis
    columns: Axis
    scale: Any
    grad_out: Any
    sums: Any
    by_thread: tl.constexpr
    precision: tl.constexpr  # last: in nested tuples that follow it Triton 3.6 loses constants inside loops


class Place(NamedTuple):
    """Place of a program: image, head, and rows and columns of a tile."""

    batch: Any
    head: Any
    rows: Strip | None
    columns: Strip | None


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


def as_given(problem: Problem) -> tuple[Given, Sizes]:
    """Return a problem for kernels, and its sizes."""
    p = problem
    extra_k, extra_v = (None if x is None or not x.shape[1] else as_tokens(x.to(p.q)) for x in (p.extra_k, p.extra_v))
    rel_h, rel_w = (None if x is None else as_map(x) for x in (p.rel_h, p.rel_w))
    rpb = None if p.rpb is None else p.rpb.contiguous()
    batch, height, width, heads, _ = p.q.shape
    maps, tokens, axes = (as_map(p.q), as_map(p.k), as_map(p.v)), (extra_k, extra_v), map(as_axis, p.window.axes)
    sizes = Sizes(batch, heads, height, width, *p.size, 0 if p.extra_k is None else p.extra_k.shape[1])
    return Given(
        *(*maps, rpb, rel_h, rel_w, *tokens, *axes, p.scale, None, None),
        tl.constexpr(_by_thread(p.q)),
        tl.constexpr(product_precision(p.q.device, p.q.dtype)),
    ), sizes


def _by_thread(q: Tensor) -> bool:
    """Return whether kernels may use NVIDIA's instructions."""
    return q.is_cuda and torch.version.hip is None


def fold_scale(problem: Problem) -> tuple[Problem, float]:
    """Return the problem with a scale that kernels can divide by, and by what its gradient of q is to be multiplied."""
    scale, size = problem.scale, abs(problem.scale)
    if LEAST_SCALE <= scale <= 1 / LEAST_SCALE:
        return problem, 1.0
    factor, scale = (-1.0, size) if LEAST_SCALE <= size <= 1 / LEAST_SCALE else (scale, 1.0)
    return replace(problem, q=problem.q * factor, scale=scale), factor


@triton.jit
def dot(a: tl.tensor, b: tl.tensor, start: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    """Multiply matrices, summed in float32, from `start`."""
    if PRECISION == "interpreted":  # the interpreter would multiply the bits of bfloat16 as integers
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), start)
    else:
        product = tl.dot(a, b, start, input_precision=PRECISION)
    return product


@triton.jit
def has_nan(x: tl.tensor) -> tl.tensor:
    """Return whether there is NaN in a matrix."""
    return tl.max(tl.max(tl.where(x == x, 0, 1), 1), 0) > 0


@triton.jit
def add_sums(
    total: tl.tensor,
    spoilt: tl.tensor,
    weights: tl.tensor,
    rows: tl.tensor,
    seen: tl.tensor,
    PRECISION: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tuple:
    """Add `weights [M, N]` times `rows [N, c]` to a total, and what is `spoilt [M]` to that.

    A weight of zero leaves NaN out only with SELECTS: then a row of the total is spoilt if it has seen a vector that is
    not finite, and others are clean. Without it whatever gets through is NaN in the total; see `has_nan`.
    """
    if SELECTS:
        finite = tl.abs(rows.to(tl.float32)) < float("inf")
        infinite = tl.max(tl.where(finite, 0, 1), 1)
        spoilt = tl.maximum(spoilt, tl.max(tl.where(seen, infinite[None, :], 0), 1))
        rows = tl.where(finite, rows, 0.0).to(rows.dtype)
        weights = tl.where(seen, weights, 0.0)
    return dot(weights.to(rows.dtype), rows, total, PRECISION), spoilt


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
def load_gradients(given: Given, place: Place, row: tl.tensor, column: tl.tensor, valid: tl.tensor) -> tl.tuple:
    """Load output gradients of queries, log-sum-exp in base 2, and delta: a query that is not valid has no weight."""
    grad = load_vectors(given.grad_out, place.batch, place.head, row, column, valid)
    which = tl.arange(0, 2)[None, :]
    pointer = address(given.sums, place.batch, place.head, row, column)[:, None] + which
    pairs = tl.load(pointer, mask=valid[:, None], other=tl.where(which == 0, float("inf"), 0.0))
    log_sum, delta = tl.split(pairs)
    return grad, log_sum, delta


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


@triton.jit
def rel_entries(
    x: Map, axis: Axis, place: Place, queries: Queries, index: tl.tensor, first: tl.tensor, SIZE: tl.constexpr
) -> tl.tuple:
    """Return where logits by offset stand in a map, for `SIZE` keys of one axis from `first`.

    Returns:
        The addresses `[M, SIZE]`, and whether there is such an entry.
    """
    entry = first + tl.arange(0, SIZE)[None, :] - index[:, None] + axis.kernel_size - 1
    start = address(x, place.batch, place.head, queries.row, queries.column)
    exists = (entry >= 0) & (entry < 2 * axis.kernel_size - 1) & queries.valid[:, None]
    return start[:, None] + entry, exists


@triton.jit
def biases(
    given: Given,
    place: Place,
    rows: Rows,
    queries: Queries,
    first: tl.tuple,
    key: tl.tuple,
    masked: tl.tensor,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    BY_KEY: tl.constexpr,
) -> tl.tensor:
    """Return what scores start from: biases over the scale, and minus infinity if a pair is masked.

    Rows of scores are queries (with BY_KEY keys); the others are a rectangle of `HIGH x WIDE` whose numbers begin at
    `first`. Keys have the numbers `key`. Where `masked` is false, all pairs see each other.
    """
    inverse = 1.0 / given.scale
    first_h, first_w = first
    if given.rpb is not None:
        i = tl.arange(0, HIGH * WIDE)
        width: tl.constexpr = 2 * given.columns.kernel_size - 1
        step_h, step_w = width, 1
        if BY_KEY:
            step_h, step_w = -width * given.rows.spacing, -given.columns.spacing
        table = given.rpb + tl.cast(place.head, tl.int64) * ((2 * given.rows.kernel_size - 1) * width)
        entry = table + (rows.origin + first_h * step_h + first_w * step_w)[:, None]
        entry = entry + (i % WIDE * step_w)[None, :] + (i // WIDE * step_h)[None, :]
        number, limit = meet(rows, first_h, first_w, HIGH, WIDE)
        bias = load_scattered(entry, number, limit, float("-inf"), given.by_thread) * inverse
    else:
        bias = tl.zeros((rows.origin.shape[0], HIGH * WIDE), tl.float32)
        if masked:
            bias = tl.where(see(rows, first_h, first_w, HIGH, WIDE), bias, float("-inf"))
    key_h, key_w = key
    if given.rel_h is not None:
        logits = rel_logits(given, given.rel_h, given.rows, place, queries, queries.index_h, key_h, BY_KEY)
        bias += logits * inverse
    if given.rel_w is not None:
        logits = rel_logits(given, given.rel_w, given.columns, place, queries, queries.index_w, key_w, BY_KEY)
        bias += logits * inverse
    return bias


@triton.jit
def rel_logits(
    given: Given,
    x: Map,
    axis: Axis,
    place: Place,
    queries: Queries,
    index: tl.tensor,
    key: tl.tensor,
    BY_KEY: tl.constexpr,
) -> tl.tensor:
    """Return logits of queries by their offset to keys on one axis, zero where there is none."""
    Q: tl.constexpr = 0 if BY_KEY else 1  # the axis along which what is known of queries is repeated
    start = address(x, place.batch, place.head, queries.row, queries.column) - index + (axis.kernel_size - 1)
    offset = tl.expand_dims(key, 1 - Q) - tl.expand_dims(index - (axis.kernel_size - 1), Q)
    limit = tl.where(queries.valid, 2 * axis.kernel_size - 1, 0).to(tl.uint32)
    entry = tl.expand_dims(start, Q) + tl.expand_dims(key, 1 - Q)
    return load_scattered(entry, offset, tl.expand_dims(limit, Q), 0.0, given.by_thread)


@triton.jit
def score_keys(
    given: Given,
    place: Place,
    query: tl.tensor,
    queries: Queries,
    rows: Rows,
    first_h: tl.tensor,
    first_w: tl.tensor,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    INTERIOR: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tuple:
    """Load keys and values of a rectangle from `first_h, first_w`; score them `[M, N]` with a tile of queries."""
    n = tl.arange(0, KEY_H * KEY_W)
    strip_h, strip_w = place.rows, place.columns
    row, inside_h = place_keys(given.rows, strip_h.group, first_h + n // KEY_W, strip_h.span.hi)
    column, inside_w = place_keys(given.columns, strip_w.group, first_w + n % KEY_W, strip_w.span.hi)
    key = load_vectors(given.k, place.batch, place.head, row, column, inside_h & inside_w)
    masked = partly(strip_h.span, first_h, KEY_H) | partly(strip_w.span, first_w, KEY_W) if INTERIOR else True
    first, key_numbers = (first_h, first_w), (first_h + n // KEY_W, first_w + n % KEY_W)
    start = biases(given, place, rows, queries, first, key_numbers, masked, KEY_H, KEY_W, False)
    scores = dot(query, tl.trans(key), start, given.precision)
    if SELECTS:
        scores = tl.where(see(rows, first_h, first_w, KEY_H, KEY_W), scores, float("-inf"))
    value = load_vectors(given.v, place.batch, place.head, row, column, inside_h & inside_w)
    return key, value, scores


@triton.jit
def score_tokens(given: Given, sizes: Sizes, place: Place, query: tl.tensor, token: tl.tensor) -> tl.tuple:
    """Load extra keys and values; return also scores `[M, N]` of queries, and whether there is such a token."""
    inside = token < sizes.num_extra
    key = load_vectors(given.extra_k, place.batch, place.head, token, token, inside)
    start = tl.where(inside[None, :], tl.zeros((query.shape[0], token.shape[0]), tl.float32), float("-inf"))
    scores = dot(query, tl.trans(key), start, given.precision)
    value = load_vectors(given.extra_v, place.batch, place.head, token, token, inside)
    return key, value, scores, inside


@triton.jit
def turns(span: Span, SIZE: tl.constexpr) -> tl.tensor:
    """Return how many rectangles of `SIZE` cover a span."""
    return tl.cdiv(tl.maximum(span.hi - span.lo, 0), SIZE)
