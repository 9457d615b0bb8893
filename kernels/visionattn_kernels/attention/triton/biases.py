"""Start of the scores: positional bias, relative logits and the mask.

Shape letters: M queries of a tile, N keys of a tile, both row by row; R entries of a relative table.
"""

from __future__ import annotations

import triton
import triton.language as tl

from visionattn_kernels.attention.triton.given import Given
from visionattn_kernels.attention.triton.maps import Map, address, load_scattered
from visionattn_kernels.attention.triton.places import Place, Queries, Rows, meet, see
from visionattn_kernels.attention.triton.rule import Axis


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
