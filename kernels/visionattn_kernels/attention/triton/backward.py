"""Gradients: probabilities again from the log-sum-exp, and every sum in a fixed order, without atomics.

`by_query` has a tile of queries and walks over their keys, as forward does: gradients of queries and of relative
logits. `by_key` has a tile of keys and walks over the queries that see it. What sums over whole images is in `sums`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton import tuning
from visionattn_kernels.attention.triton.biases import biases, rel_entries
from visionattn_kernels.attention.triton.blocks import (
    LOG2E,
    add_sums,
    dot,
    has_nan,
    load_gradients,
    score_keys,
    score_tokens,
)
from visionattn_kernels.attention.triton.given import Given, Sizes, as_given, fold_scale
from visionattn_kernels.attention.triton.maps import Map, address, as_map, load_vectors, store_vectors
from visionattn_kernels.attention.triton.places import (
    Place,
    Rows,
    locate_keys,
    locate_queries,
    place_queries,
    see,
    tile_keys,
    tile_queries,
)
from visionattn_kernels.attention.triton.plan import Tile, has_interior
from visionattn_kernels.attention.triton.rule import partly, turns
from visionattn_kernels.attention.triton.sums import sum_by_offset, sum_by_token


@triton.jit(do_not_specialize=["sizes"])
def by_query(
    given: Given,
    out: Map,
    lse: Map,
    grad_lse: Map | None,
    grad_q: Map,
    grad_rel_h: Map | None,
    grad_rel_w: Map | None,
    sizes: Sizes,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    INTERIOR: tl.constexpr,
) -> None:
    """Write grad_q, entries of grad_rel_h and grad_rel_w that are not zero, and `sums` for other kernels."""
    place = locate_queries(given, sizes, QUERY_H, QUERY_W)
    batch, head = place.batch, place.head
    queries, rows = tile_queries(given, place, QUERY_H, QUERY_W)
    row, column, valid = queries.row, queries.column, queries.valid
    query = load_vectors(given.q, batch, head, row, column, valid)
    grad = load_vectors(given.grad_out, batch, head, row, column, valid)

    result = load_vectors(out, batch, head, row, column, valid)
    slope = tl.sum(result.to(tl.float32) * grad.to(tl.float32), 1)
    if grad_lse is not None:
        slope -= tl.load(address(grad_lse, batch, head, row, column), mask=valid, other=0.0)
    log_sum = tl.load(address(lse, batch, head, row, column), mask=valid, other=float("inf")) * LOG2E
    sums = address(given.sums, batch, head, row, column)
    tl.store(sums, log_sum, mask=valid)
    tl.store(sums + 1, slope, mask=valid)

    known = (query, queries, rows, grad, log_sum, slope)
    total = _walk_keys(given, sizes, place, known, grad_rel_h, grad_rel_w, KEY_H, KEY_W, INTERIOR, False)
    if has_nan(total):
        total = _walk_keys(given, sizes, place, known, grad_rel_h, grad_rel_w, 1, 16, False, True)
    store_vectors(grad_q, batch, head, row, column, valid, total * given.scale)


@triton.jit
def _walk_keys(
    given: Given,
    sizes: Sizes,
    place: Place,
    known: tl.tuple,
    grad_rel_h: Map | None,
    grad_rel_w: Map | None,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    INTERIOR: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tensor:
    """Walk over the keys of a tile: gradients of its queries, before the scale; writes those of relative logits."""
    query, queries, rows, grad, log_sum, slope = known
    M: tl.constexpr = query.shape[0]
    N: tl.constexpr = KEY_H * KEY_W
    REL: tl.constexpr = (given.rel_h is not None) or (given.rel_w is not None)
    span_h, span_w = place.rows.span, place.columns.span
    factor = given.scale * LOG2E
    n = tl.arange(0, N)
    zeros = tl.zeros((M, N), tl.float32)
    total = tl.zeros((M, given.k.block), tl.float32)
    spoilt = tl.zeros((M,), tl.int32)
    high, wide = turns(span_h, KEY_H), turns(span_w, KEY_W)
    # Gradients of relative logits are written one column of rectangles after another; else one walk takes all.
    if REL:
        strips, steps = wide, high
    else:
        strips, steps = 1, high * wide
    for strip in range(strips):
        by_column = tl.zeros((M, KEY_W), tl.float32)
        for step in tl.range(strip * steps, (strip + 1) * steps, num_stages=1 if SELECTS else None):
            first_h, first_w = span_h.lo + step % high * KEY_H, span_w.lo + step // high * KEY_W
            key, value, scores = score_keys(
                given, place, query, queries, rows, first_h, first_w, KEY_H, KEY_W, INTERIOR, SELECTS
            )
            weights = tl.exp2(scores * factor - log_sum[:, None])
            grad_scores = weights * (dot(grad, tl.trans(value), zeros, given.precision) - slope[:, None])
            seen = scores != float("-inf")
            if SELECTS:
                grad_scores = tl.where(seen, grad_scores, 0.0)
            total, spoilt = add_sums(total, spoilt, grad_scores, key, seen, given.precision, SELECTS)
            if REL:
                rectangles = tl.reshape(grad_scores, (M, KEY_H, KEY_W))
                by_column += tl.sum(rectangles, 1)
                if grad_rel_h is not None:
                    entry, exists = rel_entries(grad_rel_h, given.rows, place, queries, queries.index_h, first_h, KEY_H)
                    earlier = tl.load(entry, mask=exists & (strip > 0), other=0.0)
                    tl.store(entry, earlier + tl.sum(rectangles, 2), mask=exists)
        if grad_rel_w is not None:
            first_w = span_w.lo + strip * KEY_W
            entry, exists = rel_entries(grad_rel_w, given.columns, place, queries, queries.index_w, first_w, KEY_W)
            tl.store(entry, by_column, mask=exists)
        if grad_rel_h is not None:
            tl.debug_barrier()  # the next strip reads what other threads have written

    if given.extra_k is not None:
        for first in tl.range(0, sizes.num_extra, N, num_stages=1):
            key, value, scores, inside = score_tokens(given, sizes, place, query, first + n)
            weights = tl.exp2(scores * factor - log_sum[:, None])
            grad_scores = weights * (dot(grad, tl.trans(value), zeros, given.precision) - slope[:, None])
            total, spoilt = add_sums(total, spoilt, grad_scores, key, inside[None, :], given.precision, SELECTS)
    return tl.where(spoilt[:, None] > 0, float("nan"), total) if SELECTS else total


@triton.jit(do_not_specialize=["sizes"])
def by_key(
    given: Given,
    grad_k: Map,
    grad_v: Map,
    sizes: Sizes,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    INTERIOR: tl.constexpr,
) -> None:
    """Write grad_k and grad_v; a program has a tile of keys, and scores have keys first."""
    place = locate_keys(given, sizes, KEY_H, KEY_W)
    batch, head = place.batch, place.head
    row, column, inside, rows = tile_keys(given, place, KEY_H, KEY_W)
    key = load_vectors(given.k, batch, head, row, column, inside)
    value = load_vectors(given.v, batch, head, row, column, inside)

    total_k, total_v = _walk_queries(given, place, key, value, rows, QUERY_H, QUERY_W, KEY_H, KEY_W, INTERIOR, False)
    if has_nan(total_k) | has_nan(total_v):
        total_k, total_v = _walk_queries(given, place, key, value, rows, 1, 16, KEY_H, KEY_W, False, True)

    store_vectors(grad_k, batch, head, row, column, inside, total_k * given.scale)
    store_vectors(grad_v, batch, head, row, column, inside, total_v)


@triton.jit
def _walk_queries(
    given: Given,
    place: Place,
    key: tl.tensor,
    value: tl.tensor,
    rows: Rows,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    INTERIOR: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tuple:
    """Walk over the queries that see a tile of keys: gradients of these, before the scale, and of their values."""
    M: tl.constexpr = QUERY_H * QUERY_W
    N: tl.constexpr = KEY_H * KEY_W
    span_h, span_w = place.rows.span, place.columns.span
    factor = given.scale * LOG2E
    m, n = tl.arange(0, M), tl.arange(0, N)
    keys = place.rows.first + n // KEY_W, place.columns.first + n % KEY_W
    zeros = tl.zeros((N, M), tl.float32)
    total_k = tl.zeros((N, key.shape[1]), tl.float32)
    total_v = tl.zeros((N, value.shape[1]), tl.float32)
    spoilt_k, spoilt_v = tl.zeros((N,), tl.int32), tl.zeros((N,), tl.int32)
    high, wide = turns(span_h, QUERY_H), turns(span_w, QUERY_W)
    for step in tl.range(high * wide, num_stages=1 if SELECTS else None):
        from_h, from_w = span_h.lo + step // wide * QUERY_H, span_w.lo + step % wide * QUERY_W
        number_h, number_w = from_h + m // QUERY_W, from_w + m % QUERY_W
        valid = (number_h < span_h.hi) & (number_w < span_w.hi)
        queries = place_queries(given, place, number_h, number_w, valid)
        query = load_vectors(given.q, place.batch, place.head, queries.row, queries.column, valid)
        grad, log_sum, slope = load_gradients(given, place, queries.row, queries.column, valid)
        masked = partly(span_h, from_h, QUERY_H) | partly(span_w, from_w, QUERY_W) if INTERIOR else True
        start = biases(given, place, rows, queries, (from_h, from_w), keys, masked, QUERY_H, QUERY_W, True)
        scores = dot(key, tl.trans(query), start, given.precision)
        visible = see(rows, from_h, from_w, QUERY_H, QUERY_W)
        if SELECTS:
            scores = tl.where(visible, scores, float("-inf"))
        weights = tl.exp2(scores * factor - log_sum[None, :])
        grad_scores = weights * (dot(value, tl.trans(grad), zeros, given.precision) - slope[None, :])
        total_v, spoilt_v = add_sums(total_v, spoilt_v, weights, grad, visible, given.precision, SELECTS)
        total_k, spoilt_k = add_sums(total_k, spoilt_k, grad_scores, query, visible, given.precision, SELECTS)
    if SELECTS:
        total_k = tl.where(spoilt_k[:, None] > 0, float("nan"), total_k)
        total_v = tl.where(spoilt_v[:, None] > 0, float("nan"), total_v)
    return total_k, total_v


def _new_sums(q: Tensor) -> Tensor:
    """Return an empty `[B, Q_h, Q_w, heads, 2]` in which the pairs of one head are neighbours."""
    batch, height, width, heads, _ = q.shape
    return q.new_empty((batch, heads, height, width, 2), dtype=torch.float32).permute(0, 2, 3, 1, 4)


def backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> list[Tensor | None]:
    """Compute the gradients of all tensors; see `fused.Backward`."""
    p, factor = fold_scale(problem)
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (p.q, p.k, p.v))
    grad_rpb, grad_extra_k, grad_extra_v = (
        None if x is None else torch.zeros_like(x) for x in (p.rpb, p.extra_k, p.extra_v)
    )
    grad_rel_h, grad_rel_w = (
        None if x is None else x.new_zeros(x.shape, dtype=torch.float32) for x in (p.rel_h, p.rel_w)
    )
    if lse.numel():
        given, sizes = as_given(p)
        given = given._replace(grad_out=as_map(grad_out), sums=as_map(_new_sums(p.q)))
        tensors = out, lse[..., None], None if grad_lse is None else grad_lse[..., None], grad_q, grad_rel_h, grad_rel_w
        results = [None if x is None else as_map(x) for x in tensors]
        grads = as_map(grad_k), as_map(grad_v)

        def launch_by_query(tile: Tile) -> None:
            cut = sizes.cut(given, tile.query, by_key=False)
            interior = has_interior(p, tile, by_key=False)
            tuning.start(by_query, cut.grid(), given, *results, cut, tile=tile, INTERIOR=interior)

        def launch_by_key(tile: Tile) -> None:
            cut = sizes.cut(given, tile.key, by_key=True)
            interior = has_interior(p, tile, by_key=True)
            tuning.start(by_key, cut.grid(), given, *grads, cut, tile=tile, INTERIOR=interior)

        tuning.run("query", p, launch_by_query)
        tuning.run("key", p, launch_by_key)
        if p.rpb is not None:
            grad_rpb = sum_by_offset(p, given, sizes)
        if given.extra_k is not None:
            grad_extra_k, grad_extra_v = sum_by_token(p, given, sizes)
    grad_q = grad_q if factor == 1.0 else grad_q * factor
    return [grad_q, grad_k, grad_v, grad_rpb, grad_rel_h, grad_rel_w, grad_extra_k, grad_extra_v]
