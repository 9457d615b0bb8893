"""Scores of a tile of queries and a block of keys, and sums of rows by weights.

Scores are kept without the scale: `q.k + bias / scale`, where a pair is masked minus infinity. All that is not the
product is where it starts from, so it costs no operation; the scale and the base of the exponent are one factor.
Shape letters: M queries of a tile, N keys of a block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from visionattn_kernels.attention.triton.biases import biases
from visionattn_kernels.attention.triton.given import Given, Sizes
from visionattn_kernels.attention.triton.maps import address, load_vectors
from visionattn_kernels.attention.triton.places import Place, Queries, Rows, place_keys, see
from visionattn_kernels.attention.triton.rule import partly

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


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
def load_gradients(given: Given, place: Place, row: tl.tensor, column: tl.tensor, valid: tl.tensor) -> tl.tuple:
    """Load output gradients of queries, log-sum-exp in base 2, and delta: a query that is not valid has no weight."""
    grad = load_vectors(given.grad_out, place.batch, place.head, row, column, valid)
    which = tl.arange(0, 2)[None, :]
    pointer = address(given.sums, place.batch, place.head, row, column)[:, None] + which
    pairs = tl.load(pointer, mask=valid[:, None], other=tl.where(which == 0, float("inf"), 0.0))
    log_sum, delta = tl.split(pairs)
    return grad, log_sum, delta


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
