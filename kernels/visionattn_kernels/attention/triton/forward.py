"""Output and log-sum-exp: one program per tile of queries, head and image, with an online softmax over its keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton import tuning
from visionattn_kernels.attention.triton.blocks import LN2, LOG2E, add_sums, has_nan, score_keys, score_tokens
from visionattn_kernels.attention.triton.given import Given, Sizes, as_given, fold_scale
from visionattn_kernels.attention.triton.maps import Map, address, as_map, load_vectors, store_vectors
from visionattn_kernels.attention.triton.places import Place, Queries, Rows, locate_queries, tile_queries
from visionattn_kernels.attention.triton.plan import Tile, has_interior
from visionattn_kernels.attention.triton.rule import turns


@triton.jit(do_not_specialize=["sizes"])
def attend(
    given: Given,
    out: Map,
    lse: Map,
    sizes: Sizes,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    INTERIOR: tl.constexpr,
) -> None:
    """Write out and lse."""
    place = locate_queries(given, sizes, QUERY_H, QUERY_W)
    queries, rows = tile_queries(given, place, QUERY_H, QUERY_W)
    query = load_vectors(given.q, place.batch, place.head, queries.row, queries.column, queries.valid)

    most, total, mean = _walk(given, sizes, place, query, queries, rows, KEY_H, KEY_W, INTERIOR, False)
    if has_nan(mean):
        most, total, mean = _walk(given, sizes, place, query, queries, rows, 1, 16, False, True)

    total = tl.where(queries.valid, total, 1.0)
    store_vectors(out, place.batch, place.head, queries.row, queries.column, queries.valid, mean / total[:, None])
    log_sum = (most * (given.scale * LOG2E) + tl.log2(total)) * LN2
    tl.store(address(lse, place.batch, place.head, queries.row, queries.column), log_sum, mask=queries.valid)


@triton.jit
def _walk(
    given: Given,
    sizes: Sizes,
    place: Place,
    query: tl.tensor,
    queries: Queries,
    rows: Rows,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    INTERIOR: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tuple:
    """Walk over the keys of a tile; return its maxima, sums of weights and weighted sums of values. See `add_sums`."""
    M: tl.constexpr = query.shape[0]
    N: tl.constexpr = KEY_H * KEY_W
    span_h, span_w = place.rows.span, place.columns.span
    factor = given.scale * LOG2E
    n = tl.arange(0, N)
    # A finite least maximum: a row that has seen no key yet must not subtract infinities. Lower scores count as none.
    most = tl.full((M,), -1e30, tl.float32)
    total = tl.zeros((M,), tl.float32)
    mean = tl.zeros((M, given.v.block), tl.float32)
    spoilt = tl.zeros((M,), tl.int32)
    high, wide = turns(span_h, KEY_H), turns(span_w, KEY_W)
    for step in tl.range(high * wide, num_stages=1 if SELECTS else None):
        first_h, first_w = span_h.lo + step % high * KEY_H, span_w.lo + step // high * KEY_W
        _, value, scores = score_keys(
            given, place, query, queries, rows, first_h, first_w, KEY_H, KEY_W, INTERIOR, SELECTS
        )
        most, total, mean, spoilt = _join(most, total, mean, spoilt, scores, factor, value, given.precision, SELECTS)

    if given.extra_k is not None:
        for first in tl.range(0, sizes.num_extra, N, num_stages=1):
            _, value, scores, _ = score_tokens(given, sizes, place, query, first + n)
            most, total, mean, spoilt = _join(
                most, total, mean, spoilt, scores, factor, value, given.precision, SELECTS
            )
    return most, total, tl.where(spoilt[:, None] > 0, float("nan"), mean) if SELECTS else mean


@triton.jit
def _join(
    most: tl.tensor,
    total: tl.tensor,
    mean: tl.tensor,
    spoilt: tl.tensor,
    scores: tl.tensor,
    factor: tl.tensor,
    value: tl.tensor,
    PRECISION: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tuple:
    """Take a block of keys into the running maximum, sum of weights and weighted sum of values."""
    more = tl.maximum(most, tl.max(scores, 1))
    weights = tl.exp2(scores * factor - (more * factor)[:, None])
    shrink = tl.exp2((most - more) * factor)
    seen = scores != float("-inf")
    mean, spoilt = add_sums(mean * shrink[:, None], spoilt, weights, value, seen, PRECISION, SELECTS)
    return more, total * shrink + tl.sum(weights, 1), mean, spoilt


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Compute output and log-sum-exp; see `fused.Forward`."""
    p, _ = fold_scale(problem)
    out = p.q.new_empty(*p.q.shape[:-1], p.v.shape[-1])
    lse = p.q.new_empty(p.q.shape[:-1], dtype=torch.float32)
    if not lse.numel():
        return out, lse
    given, sizes = as_given(p)
    results = as_map(out), as_map(lse[..., None])

    def launch(tile: Tile) -> None:
        cut = sizes.cut(given, tile.query, by_key=False)
        interior = has_interior(p, tile, by_key=False)
        tuning.start(attend, cut.grid(), given, *results, cut, tile=tile, INTERIOR=interior)

    tuning.run("forward", p, launch)
    return out, lse
