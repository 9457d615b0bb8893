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
from visionattn_kernels.attention.triton.blocks import (
    Given,
    Map,
    Place,
    Queries,
    Sizes,
    add_biases,
    add_sums,
    as_given,
    as_map,
    describe_queries,
    dot,
    has_nan,
    load_gradients,
    load_span,
    load_vectors,
    locate,
    partly,
    rel_entries,
    score_keys,
    score_tokens,
    store_vectors,
    tile_queries,
)
from visionattn_kernels.attention.triton.plan import Tile, place_axes
from visionattn_kernels.attention.triton.sums import sum_by_offset, sum_by_token


@triton.jit(do_not_specialize=["sizes"])
def by_query(
    given: Given,
    out: Map,
    grad_lse: tl.tensor,
    grad_q: Map,
    grad_rel_h: tl.tensor,
    grad_rel_w: tl.tensor,
    sizes: Sizes,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
) -> None:
    """Write grad_q, entries of grad_rel_h and grad_rel_w that are not zero, and `delta` for other kernels."""
    place = locate(given, sizes)
    batch, head = place.batch, place.head
    queries = tile_queries(given, sizes, place, QUERY_H, QUERY_W)
    query = load_vectors(given.q, batch, head, queries.row, queries.column, queries.valid)
    grad = load_vectors(given.grad_out, batch, head, queries.row, queries.column, queries.valid)

    result = load_vectors(out, batch, head, queries.row, queries.column, queries.valid)
    slope = tl.sum(result.to(tl.float32) * grad.to(tl.float32), 1)
    if grad_lse is not None:
        slope -= tl.load(grad_lse + queries.number, mask=queries.valid, other=0.0)
    tl.store(given.delta + queries.number, slope, mask=queries.valid)
    log_sum = tl.load(given.lse + queries.number, mask=queries.valid, other=float("inf"))

    total = _walk_keys(
        given, sizes, place, query, queries, grad, log_sum, slope, grad_rel_h, grad_rel_w, KEY_H, KEY_W, False
    )
    if has_nan(total):
        total = _walk_keys(
            given, sizes, place, query, queries, grad, log_sum, slope, grad_rel_h, grad_rel_w, KEY_H, KEY_W, True
        )
    store_vectors(grad_q, batch, head, queries.row, queries.column, queries.valid, total * given.scale)


@triton.jit
def _walk_keys(
    given: Given,
    sizes: Sizes,
    place: Place,
    query: tl.tensor,
    queries: Queries,
    grad: tl.tensor,
    log_sum: tl.tensor,
    slope: tl.tensor,
    grad_rel_h: tl.tensor,
    grad_rel_w: tl.tensor,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tensor:
    """Walk over the keys of a tile: gradients of its queries, before the scale; writes those of relative logits."""
    M: tl.constexpr = query.shape[0]
    N: tl.constexpr = KEY_H * KEY_W
    REL: tl.constexpr = (given.rel_h is not None) or (given.rel_w is not None)
    span_h, span_w = load_span(given.rows, place.tile_h), load_span(given.columns, place.tile_w)
    n = tl.arange(0, N)
    total = tl.zeros((M, given.k.block), tl.float32)
    spoilt = tl.zeros((M,), tl.int32)
    high, wide = tl.cdiv(span_h.hi - span_h.lo, KEY_H), tl.cdiv(span_w.hi - span_w.lo, KEY_W)
    # Gradients of relative logits are written one column of rectangles after another; else one walk takes all.
    if REL:
        strips, steps = wide, high
    else:
        strips, steps = 1, high * wide
    for strip in range(strips):
        by_column = tl.zeros((M, KEY_W), tl.float32)
        for step in range(strip * steps, (strip + 1) * steps):
            first_h, first_w = span_h.lo + step % high * KEY_H, span_w.lo + step // high * KEY_W
            key, value, scores = score_keys(
                given, place, query, queries, span_h, span_w, first_h, first_w, KEY_H, KEY_W, SELECTS
            )
            grad_weights = dot(grad, tl.trans(value), given.precision)
            grad_scores = tl.exp(scores - log_sum[:, None]) * (grad_weights - slope[:, None])
            seen = scores != float("-inf")
            if SELECTS:
                grad_scores = tl.where(seen, grad_scores, 0.0)
            total, spoilt = add_sums(total, spoilt, grad_scores, key, seen, given.precision, SELECTS)
            if REL:
                rectangles = tl.reshape(grad_scores, (M, KEY_H, KEY_W))
                by_column += tl.sum(rectangles, 1)
                if given.rel_h is not None:
                    entry, exists = rel_entries(given.rows, queries.number, queries.index_h, first_h, KEY_H)
                    exists = exists & queries.valid[:, None]
                    earlier = tl.load(grad_rel_h + entry, mask=exists & (strip > 0), other=0.0)
                    tl.store(grad_rel_h + entry, earlier + tl.sum(rectangles, 2), mask=exists)
        if given.rel_w is not None:
            entry, exists = rel_entries(
                given.columns, queries.number, queries.index_w, span_w.lo + strip * KEY_W, KEY_W
            )
            tl.store(grad_rel_w + entry, by_column, mask=exists & queries.valid[:, None])
        if given.rel_h is not None:
            tl.debug_barrier()  # the next strip reads what other threads have written

    if given.extra_k is not None:
        for first in range(0, sizes.num_extra, N):
            key, value, scores, inside = score_tokens(given, sizes, place, query, first + n)
            grad_weights = dot(grad, tl.trans(value), given.precision)
            grad_scores = tl.exp(scores - log_sum[:, None]) * (grad_weights - slope[:, None])
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
) -> None:
    """Write grad_k and grad_v; the axes hold tiles of keys, and scores have keys first."""
    place, rows, columns = locate(given, sizes), given.rows, given.columns
    batch, head = place.batch, place.head
    n = tl.arange(0, KEY_H * KEY_W)
    table_h, table_w = rows.tiles + place.tile_h * 8, columns.tiles + place.tile_w * 8
    inside = (n // KEY_W < tl.load(table_h + 1)) & (n % KEY_W < tl.load(table_w + 1))
    row = tl.load(table_h) + rows.dilation * (n // KEY_W)
    column = tl.load(table_w) + columns.dilation * (n % KEY_W)
    key = load_vectors(given.k, batch, head, row, column, inside)
    value = load_vectors(given.v, batch, head, row, column, inside)

    total_k, total_v = _walk_queries(given, sizes, place, key, value, QUERY_H, QUERY_W, KEY_H, KEY_W, False)
    if has_nan(total_k) | has_nan(total_v):
        total_k, total_v = _walk_queries(given, sizes, place, key, value, QUERY_H, QUERY_W, KEY_H, KEY_W, True)

    store_vectors(grad_k, batch, head, row, column, inside, total_k * given.scale)
    store_vectors(grad_v, batch, head, row, column, inside, total_v)


@triton.jit
def _walk_queries(
    given: Given,
    sizes: Sizes,
    place: Place,
    key: tl.tensor,
    value: tl.tensor,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tuple:
    """Walk over the queries that see a tile of keys: gradients of these, before the scale, and of their values."""
    rows, columns = given.rows, given.columns
    m = tl.arange(0, QUERY_H * QUERY_W)
    table_h, table_w = rows.tiles + place.tile_h * 8, columns.tiles + place.tile_w * 8
    query_h, query_w = tl.load(table_h + 2), tl.load(table_w + 2)
    first_h, first_w = tl.load(table_h + 3), tl.load(table_w + 3)
    span_h, span_w = load_span(given.rows, place.tile_h), load_span(given.columns, place.tile_w)
    total_k = tl.zeros((KEY_H * KEY_W, key.shape[1]), tl.float32)
    total_v = tl.zeros((KEY_H * KEY_W, value.shape[1]), tl.float32)
    spoilt_k, spoilt_v = tl.zeros((KEY_H * KEY_W,), tl.int32), tl.zeros((KEY_H * KEY_W,), tl.int32)
    high, wide = tl.cdiv(span_h.hi - span_h.lo, QUERY_H), tl.cdiv(span_w.hi - span_w.lo, QUERY_W)
    for step in range(high * wide):
        from_h, from_w = span_h.lo + step // wide * QUERY_H, span_w.lo + step % wide * QUERY_W
        number_h, number_w = from_h + m // QUERY_W, from_w + m % QUERY_W
        query_row = query_h + rows.query_step * tl.minimum(number_h, span_h.hi - 1)
        query_column = query_w + columns.query_step * tl.minimum(number_w, span_w.hi - 1)
        valid = (number_h < span_h.hi) & (number_w < span_w.hi)
        queries = describe_queries(given, sizes, place, query_row, query_column, valid)
        query = load_vectors(given.q, place.batch, place.head, query_row, query_column, valid)
        grad, log_sum, slope = load_gradients(given, place, queries.number, query_row, query_column, valid)
        masked = partly(span_h, from_h, QUERY_H) | partly(span_w, from_w, QUERY_W)
        scores = dot(key, tl.trans(query), given.precision) * given.scale
        scores = add_biases(scores, given, queries, place.head, first_h, first_w, masked, KEY_H, KEY_W, True, SELECTS)
        weights = tl.exp(scores - log_sum[None, :])
        grad_scores = weights * (dot(value, tl.trans(grad), given.precision) - slope[None, :])
        seen = (scores != float("-inf")) & valid[None, :]
        total_v, spoilt_v = add_sums(total_v, spoilt_v, weights, grad, seen, given.precision, SELECTS)
        total_k, spoilt_k = add_sums(total_k, spoilt_k, grad_scores, query, seen, given.precision, SELECTS)
    if SELECTS:
        total_k = tl.where(spoilt_k[:, None] > 0, float("nan"), total_k)
        total_v = tl.where(spoilt_v[:, None] > 0, float("nan"), total_v)
    return total_k, total_v


def backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> list[Tensor | None]:
    """Compute the gradients of all tensors; see `fused.Backward`."""
    p = problem
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (p.q, p.k, p.v))
    grad_rpb, grad_extra_k, grad_extra_v = (
        None if x is None else torch.zeros_like(x) for x in (p.rpb, p.extra_k, p.extra_v)
    )
    grad_rel_h, grad_rel_w = (
        None if x is None else x.new_zeros(x.shape, dtype=torch.float32) for x in (p.rel_h, p.rel_w)
    )
    if lse.numel():
        lse = lse.contiguous()
        given, sizes = as_given(p)
        given = given._replace(grad_out=as_map(grad_out), lse=lse, delta=torch.empty_like(lse))
        grad_lse = None if grad_lse is None else grad_lse.contiguous()

        def launch_by_query(tile: Tile) -> None:
            there, maps = given.tiled(place_axes(p, tile.query, by_key=False)), (as_map(out), grad_lse, as_map(grad_q))
            tuning.start(by_query, there.grid(), there, *maps, grad_rel_h, grad_rel_w, sizes, tile=tile)

        def launch_by_key(tile: Tile) -> None:
            there, grads = given.tiled(place_axes(p, tile.key, by_key=True)), (as_map(grad_k), as_map(grad_v))
            tuning.start(by_key, there.grid(), there, *grads, sizes, tile=tile)

        tuning.run("query", p, launch_by_query)
        tuning.run("key", p, launch_by_key)
        if p.rpb is not None:
            grad_rpb = sum_by_offset(p, given, sizes)
        if given.extra_k is not None:
            grad_extra_k, grad_extra_v = sum_by_token(p, given, sizes)
    return [grad_q, grad_k, grad_v, grad_rpb, grad_rel_h, grad_rel_w, grad_extra_k, grad_extra_v]
