"""Output and log-sum-exp: one program per tile of queries, head and image, with an online softmax over its keys."""

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
    add_sums,
    as_given,
    as_map,
    has_nan,
    load_span,
    load_vectors,
    locate,
    score_keys,
    score_tokens,
    store_vectors,
    tile_queries,
)
from visionattn_kernels.attention.triton.plan import Tile, place_axes


@triton.jit(do_not_specialize=["sizes"])
def attend(
    given: Given,
    out: Map,
    lse: tl.tensor,
    sizes: Sizes,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
) -> None:
    """Write out, and contiguous lse `[B, Q_h, Q_w, heads]`."""
    M: tl.constexpr = QUERY_H * QUERY_W
    place = locate(given, sizes)
    queries = tile_queries(given, sizes, place, QUERY_H, QUERY_W)
    query = load_vectors(given.q, place.batch, place.head, queries.row, queries.column, queries.valid)

    most, total, mean = _walk(given, sizes, place, query, queries, M, KEY_H, KEY_W, False)
    if has_nan(mean):
        most, total, mean = _walk(given, sizes, place, query, queries, M, KEY_H, KEY_W, True)

    store_vectors(out, place.batch, place.head, queries.row, queries.column, queries.valid, mean / total[:, None])
    tl.store(lse + queries.number, most + tl.log(total), mask=queries.valid)


@triton.jit
def _walk(
    given: Given,
    sizes: Sizes,
    place: Place,
    query: tl.tensor,
    queries: Queries,
    M: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tuple:
    """Walk over the keys of a tile; return its maxima, sums of weights and weighted sums of values. See `add_sums`."""
    N: tl.constexpr = KEY_H * KEY_W
    span_h, span_w = load_span(given.rows, place.tile_h), load_span(given.columns, place.tile_w)
    n = tl.arange(0, N)
    # A finite least maximum: a row that has seen no key yet must not subtract infinities.
    most = tl.full((M,), -1e38, tl.float32)
    total = tl.zeros((M,), tl.float32)
    mean = tl.zeros((M, given.v.block), tl.float32)
    spoilt = tl.zeros((M,), tl.int32)
    high, wide = tl.cdiv(span_h.hi - span_h.lo, KEY_H), tl.cdiv(span_w.hi - span_w.lo, KEY_W)
    for step in range(high * wide):
        first_h, first_w = span_h.lo + step % high * KEY_H, span_w.lo + step // high * KEY_W
        _, value, scores = score_keys(
            given, place, query, queries, span_h, span_w, first_h, first_w, KEY_H, KEY_W, SELECTS
        )
        most, total, mean, spoilt = _join(most, total, mean, spoilt, scores, value, given.precision, SELECTS)

    if given.extra_k is not None:
        for first in range(0, sizes.num_extra, N):
            _, value, scores, _ = score_tokens(given, sizes, place, query, first + n)
            most, total, mean, spoilt = _join(most, total, mean, spoilt, scores, value, given.precision, SELECTS)
    return most, total, tl.where(spoilt[:, None] > 0, float("nan"), mean) if SELECTS else mean


@triton.jit
def _join(
    most: tl.tensor,
    total: tl.tensor,
    mean: tl.tensor,
    spoilt: tl.tensor,
    scores: tl.tensor,
    value: tl.tensor,
    PRECISION: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tuple:
    """Take a block of keys into the running maximum, sum of weights and weighted sum of values."""
    more = tl.maximum(most, tl.max(scores, 1))
    weights = tl.exp(scores - more[:, None])
    shrink = tl.exp(most - more)
    seen = scores != float("-inf")
    mean, spoilt = add_sums(mean * shrink[:, None], spoilt, weights, value, seen, PRECISION, SELECTS)
    return more, total * shrink + tl.sum(weights, 1), mean, spoilt


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Compute output and log-sum-exp; see `fused.Forward`."""
    p = problem
    out = p.q.new_empty(*p.q.shape[:-1], p.v.shape[-1])
    lse = p.q.new_empty(p.q.shape[:-1], dtype=torch.float32)
    if not lse.numel():
        return out, lse
    given, sizes = as_given(p)

    def launch(tile: Tile) -> None:
        there = given.tiled(place_axes(p, tile.query, by_key=False))
        tuning.start(attend, there.grid(), there, as_map(out), lse, sizes, tile=tile)

    tuning.run("forward", p, launch)
    return out, lse
