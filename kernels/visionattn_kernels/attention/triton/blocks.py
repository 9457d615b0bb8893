"""Parts that the kernels share: arguments, addresses, the window rule and the biases, for one tile of a map.

Shape letters: M queries of a tile, N keys of a tile, both row by row; R entries of a relative table. Positions are
turned into 64-bit offsets before they meet a stride: a map may hold more than 2^31 numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton.plan import Axis
from visionattn_kernels.attention.triton.precision import product_precision


class Map(NamedTuple):
    """A heads-last tensor for a kernel: strides, and channels, which are neighbours in memory and padded to a block."""

    data: Any
    batch: int
    row: int
    column: int
    head: int
    dim: tl.constexpr
    block: tl.constexpr


class Sizes(NamedTuple):
    """Further sizes: images, heads, height and width of the query map, and tokens that every query sees."""

    batch: int
    heads: int
    height: int
    width: int
    num_extra: int


class Given(NamedTuple):
    """A problem as every kernel receives it, see `Problem`; tensors that are absent or empty are None.

    Attributes:
        q, k, v: Heads-last maps.
        extra_k, extra_v: Tokens, as maps of one column.
        rpb, rel_h, rel_w: Contiguous `[heads, R_h, R_w]`, `[queries, R_h]` and `[queries, R_w]`.
        scale: Factor of the products `q.k`.
        rows, columns: The axes, in tiles of queries or of keys.
        grad_out: Heads-last gradient of the output, for backward kernels, as are the next two.
        lse: Contiguous `[B, Q_h, Q_w, heads]` log-sum-exp.
        delta: Likewise, sum(out grad_out) - grad_lse; a score has gradient weight (grad_weight - delta).
        precision: How products of float32 are rounded.
    """

    q: Map
    k: Map
    v: Map
    rpb: Any
    rel_h: Any
    rel_w: Any
    extra_k: Any
    extra_v: Any
    rows: Any
    columns: Any
    scale: Any
    grad_out: Any
    lse: Any
    delta: Any
    precision: tl.constexpr  # last: in nested tuples that follow it Triton 3.6 loses constants inside loops

    def tiled(self, axes: tuple[Axis, Axis]) -> Given:
        """Return the same problem with its axes in tiles."""
        return self._replace(rows=axes[0], columns=axes[1])

    def grid(self) -> tuple[int]:
        """Return one program per tile, head and image."""
        return (self.q.data.shape[0] * self.rows.num_tiles * self.columns.num_tiles * self.q.data.shape[3],)


class Place(NamedTuple):
    """Place of a program: image, head, and numbers of a tile on both axes."""

    batch: Any
    head: Any
    tile_h: Any
    tile_w: Any


class Queries(NamedTuple):
    """Some queries `[M]`: where they are, and the window rule of each.

    Attributes:
        number: In contiguous `[B, Q_h, Q_w, heads]`.
        row, column: In the query map.
        valid: Whether there is one; if not, the others hold those of a neighbour.
        index_h, index_w: Own position in the dilation group of each axis, in keys.
        start_h, stop_h, start_w, stop_w: The interval of keys that it sees.
    """

    number: Any
    row: Any
    column: Any
    valid: Any
    index_h: Any
    start_h: Any
    stop_h: Any
    index_w: Any
    start_w: Any
    stop_w: Any


class Span(NamedTuple):
    """Span of a tile on one axis, counted in its dilation group: met in part from lo to hi, wholly inside `every`."""

    lo: Any
    hi: Any
    every_lo: Any
    every_hi: Any


def as_map(x: Tensor) -> Map:
    """Return `[B, H, W, heads, c]` for a kernel; copied only if channels are not neighbours."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, row, column, head, _ = x.stride()
    dim = x.shape[-1]
    return Map(x, batch, row, column, head, tl.constexpr(dim), tl.constexpr(max(16, triton.next_power_of_2(dim))))


def as_tokens(x: Tensor) -> Map:
    """Return `[B, tokens, heads, c]` as a map of one column, whichever column is asked for."""
    return as_map(x[:, :, None])._replace(column=0)


def as_given(problem: Problem) -> tuple[Given, Sizes]:
    """Return a problem for kernels, without axes, and its sizes."""
    p = problem
    extra_k, extra_v = (None if x is None or not x.shape[1] else as_tokens(x.to(p.q)) for x in (p.extra_k, p.extra_v))
    rpb, rel_h, rel_w = (None if x is None else x.contiguous() for x in (p.rpb, p.rel_h, p.rel_w))
    batch, height, width, heads, _ = p.q.shape
    maps, tokens = (as_map(p.q), as_map(p.k), as_map(p.v)), (extra_k, extra_v)
    sizes = Sizes(batch, heads, height, width, 0 if p.extra_k is None else p.extra_k.shape[1])
    precision = tl.constexpr(product_precision(p.q.device, p.q.dtype))
    return Given(*maps, rpb, rel_h, rel_w, *tokens, None, None, p.scale, None, None, None, precision), sizes


@triton.jit
def dot(a: tl.tensor, b: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    """Multiply matrices, summed in float32."""
    if PRECISION == "interpreted":  # the interpreter would multiply the bits of bfloat16 as integers
        product = tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        product = tl.dot(a, b, input_precision=PRECISION)
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
    return total + dot(weights.to(rows.dtype), rows, PRECISION), spoilt


@triton.jit
def locate(given: Given, sizes: Sizes) -> Place:
    """Return where this program works; the heads of a tile, neighbours in memory, run together."""
    program = tl.program_id(0)
    tile = program // sizes.heads
    tiles_h, tiles_w = given.rows.num_tiles, given.columns.num_tiles
    batch = tile // (tiles_w * tiles_h)
    return Place(batch, program % sizes.heads, tile // tiles_w % tiles_h, tile % tiles_w)


@triton.jit
def load_span(axis: Axis, tile: tl.tensor) -> Span:
    """Load the last columns of a tile's table."""
    table = axis.tiles + tile * 8
    return Span(tl.load(table + 4), tl.load(table + 5), tl.load(table + 6), tl.load(table + 7))


@triton.jit
def partly(span: Span, first: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    """Return whether some pair is masked between a tile and `SIZE` keys or queries from `first`."""
    return (first < span.every_lo) | (first + SIZE > span.every_hi)


@triton.jit
def number_queries(sizes: Sizes, batch: tl.tensor, head: tl.tensor, row: tl.tensor, column: tl.tensor) -> tl.tensor:
    """Return numbers of queries in contiguous `[B, Q_h, Q_w, heads]`."""
    return ((tl.cast(batch, tl.int64) * sizes.height + row) * sizes.width + column) * sizes.heads + head


@triton.jit
def describe_queries(
    given: Given, sizes: Sizes, place: Place, row: tl.tensor, column: tl.tensor, valid: tl.tensor
) -> Queries:
    """Look up the rule of queries at these positions."""
    rows, columns = given.rows, given.columns
    return Queries(
        number_queries(sizes, place.batch, place.head, row, column),
        row,
        column,
        valid,
        tl.load(rows.key_index + row),
        tl.load(rows.start + row),
        tl.load(rows.stop + row),
        tl.load(columns.key_index + column),
        tl.load(columns.start + column),
        tl.load(columns.stop + column),
    )


@triton.jit
def tile_queries(given: Given, sizes: Sizes, place: Place, QUERY_H: tl.constexpr, QUERY_W: tl.constexpr) -> Queries:
    """Return the queries of a tile; its last one is repeated, so that each row of scores is finite somewhere."""
    rows, columns = given.rows, given.columns
    m = tl.arange(0, QUERY_H * QUERY_W)
    table_h, table_w = rows.tiles + place.tile_h * 8, columns.tiles + place.tile_w * 8
    count_h, count_w = tl.load(table_h + 1), tl.load(table_w + 1)
    row = tl.load(table_h) + rows.query_step * tl.minimum(m // QUERY_W, count_h - 1)
    column = tl.load(table_w) + columns.query_step * tl.minimum(m % QUERY_W, count_w - 1)
    valid = (m // QUERY_W < count_h) & (m % QUERY_W < count_w)
    return describe_queries(given, sizes, place, row, column, valid)


@triton.jit
def place_keys(axis: Axis, tile: tl.tensor, key: tl.tensor, span: Span) -> tl.tuple:
    """Return positions of keys, counted in the dilation group of a tile, and whether they are in map and span.

    What is not, is loaded as zeros; the rule says whether it takes part.
    """
    table = axis.tiles + tile * 8
    inside = (key >= 0) & (key < tl.minimum(tl.load(table + 3), span.hi))
    return tl.load(table + 2) + axis.dilation * key, inside


@triton.jit
def _address(
    x: Map, batch: tl.tensor, head: tl.tensor, row: tl.tensor, column: tl.tensor, inside: tl.tensor
) -> tl.tuple:
    channel = tl.arange(0, x.block)
    mask = inside[:, None]
    if x.dim != x.block:
        mask = mask & (channel < x.dim)[None, :]
    start = x.data + tl.cast(batch, tl.int64) * x.batch + tl.cast(head, tl.int64) * x.head
    offset = tl.cast(row, tl.int64) * x.row + tl.cast(column, tl.int64) * x.column
    return start + offset[:, None] + channel[None, :], mask


@triton.jit
def load_vectors(
    x: Map, batch: tl.tensor, head: tl.tensor, row: tl.tensor, column: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """Load vectors at positions of a map, `[positions, block]`; zeros beyond their channels and where not inside."""
    address, mask = _address(x, batch, head, row, column, inside)
    return tl.load(address, mask=mask, other=0.0)


@triton.jit
def store_vectors(
    x: Map,
    batch: tl.tensor,
    head: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    value: tl.tensor,
) -> None:
    """Store vectors at positions of a map; see `load_vectors`."""
    address, mask = _address(x, batch, head, row, column, inside)
    tl.store(address, value.to(x.data.dtype.element_ty), mask=mask)


@triton.jit
def load_gradients(
    given: Given, place: Place, number: tl.tensor, row: tl.tensor, column: tl.tensor, valid: tl.tensor
) -> tl.tuple:
    """Load output gradients of queries, log-sum-exp and delta, so that a query that is not valid has no weight."""
    grad = load_vectors(given.grad_out, place.batch, place.head, row, column, valid)
    log_sum = tl.load(given.lse + number, mask=valid, other=float("inf"))
    return grad, log_sum, tl.load(given.delta + number, mask=valid, other=0.0)


@triton.jit
def add_biases(
    scores: tl.tensor,
    given: Given,
    queries: Queries,
    head: tl.tensor,
    first_h: tl.tensor,
    first_w: tl.tensor,
    masked: tl.tensor,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    BY_KEY: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tensor:
    """Add every bias to scores `[M, N]` (with BY_KEY `[N, M]`), and minus infinity where a query does not see a key.

    The keys are a rectangle of `KEY_H x KEY_W` whose first is `first_h, first_w` in its dilation groups.
    Where `masked` is false, every query sees all the keys. Scores of NaN are certain to be masked only with SELECTS.
    """
    rows, columns = given.rows, given.columns
    if (given.rel_h is not None) or (given.rel_w is not None):
        M: tl.constexpr = queries.row.shape[0]
        bias = tl.zeros((M, KEY_H, KEY_W), tl.float32)
        if given.rel_h is not None:
            entry, exists = rel_entries(rows, queries.number, queries.index_h, first_h, KEY_H)
            bias += tl.load(given.rel_h + entry, mask=exists, other=0.0).to(tl.float32)[:, :, None]
        if given.rel_w is not None:
            entry, exists = rel_entries(columns, queries.number, queries.index_w, first_w, KEY_W)
            bias += tl.load(given.rel_w + entry, mask=exists, other=0.0).to(tl.float32)[:, None, :]
        by_query = tl.reshape(bias, (M, KEY_H * KEY_W))
        scores += tl.trans(by_query) if BY_KEY else by_query

    if (given.rpb is not None) or masked:
        Q: tl.constexpr = 0 if BY_KEY else 1  # the axis along which what is known of queries is repeated
        n = tl.arange(0, KEY_H * KEY_W)
        key_h, key_w = tl.expand_dims(first_h + n // KEY_W, 1 - Q), tl.expand_dims(first_w + n % KEY_W, 1 - Q)
        visible = (key_h >= tl.expand_dims(queries.start_h, Q)) & (key_h < tl.expand_dims(queries.stop_h, Q))
        visible &= (key_w >= tl.expand_dims(queries.start_w, Q)) & (key_w < tl.expand_dims(queries.stop_w, Q))
        if given.rpb is not None:
            width = 2 * columns.kernel_size - 1
            table = given.rpb + head * (2 * rows.kernel_size - 1) * width
            origin = (queries.index_h - rows.kernel_size + 1) * width + queries.index_w - columns.kernel_size + 1
            entry = key_h * width + key_w - tl.expand_dims(origin, Q)
            bias = tl.load(table + entry, mask=visible, other=float("-inf")).to(tl.float32)
            scores += bias
            if SELECTS:
                scores = tl.where(bias == float("-inf"), bias, scores)
        else:
            scores = tl.where(visible, scores, float("-inf"))
    return scores


@triton.jit
def rel_entries(axis: Axis, number: tl.tensor, index: tl.tensor, first: tl.tensor, SIZE: tl.constexpr) -> tl.tuple:
    """Return where logits by offset stand in contiguous `[queries, R]`, for `SIZE` keys of one axis from `first`.

    Returns:
        The entries `[M, SIZE]`, and whether there is one.
    """
    width = 2 * axis.kernel_size - 1
    entry = first + tl.arange(0, SIZE)[None, :] - index[:, None] + axis.kernel_size - 1
    return number[:, None] * width + entry, (entry >= 0) & (entry < width)


@triton.jit
def score_keys(
    given: Given,
    place: Place,
    query: tl.tensor,
    queries: Queries,
    span_h: Span,
    span_w: Span,
    first_h: tl.tensor,
    first_w: tl.tensor,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tuple:
    """Load keys and values of a rectangle from `first_h, first_w`; score them `[M, N]` with a tile of queries."""
    n = tl.arange(0, KEY_H * KEY_W)
    row, inside_h = place_keys(given.rows, place.tile_h, first_h + n // KEY_W, span_h)
    column, inside_w = place_keys(given.columns, place.tile_w, first_w + n % KEY_W, span_w)
    key = load_vectors(given.k, place.batch, place.head, row, column, inside_h & inside_w)
    masked = partly(span_h, first_h, KEY_H) | partly(span_w, first_w, KEY_W)
    scores = dot(query, tl.trans(key), given.precision) * given.scale
    scores = add_biases(scores, given, queries, place.head, first_h, first_w, masked, KEY_H, KEY_W, False, SELECTS)
    value = load_vectors(given.v, place.batch, place.head, row, column, inside_h & inside_w)
    return key, value, scores


@triton.jit
def score_tokens(given: Given, sizes: Sizes, place: Place, query: tl.tensor, token: tl.tensor) -> tl.tuple:
    """Load extra keys and values; return also scores `[M, N]` of queries, and whether there is such a token."""
    inside = token < sizes.num_extra
    key = load_vectors(given.extra_k, place.batch, place.head, token, token, inside)
    scores = tl.where(inside[None, :], dot(query, tl.trans(key), given.precision) * given.scale, float("-inf"))
    value = load_vectors(given.extra_v, place.batch, place.head, token, token, inside)
    return key, value, scores, inside
