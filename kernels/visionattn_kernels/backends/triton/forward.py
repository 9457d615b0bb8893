"""Output and log-sum-exp: one program per tile of queries, head and image, with an online softmax over its keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionattn_kernels.backends.triton import tuning
from visionattn_kernels.backends.triton.blocks import (
    Map,
    Queries,
    Sizes,
    add_biases,
    add_sums,
    as_map,
    dot,
    has_nan,
    load_span,
    load_vectors,
    locate,
    operands,
    partly,
    place_keys,
    store_vectors,
    tile_queries,
)
from visionattn_kernels.backends.triton.plan import Axis, Tile, place_axes
from visionattn_kernels.problem import Problem


@triton.jit(do_not_specialize=["sizes"])
def attend(
    q: Map,
    k: Map,
    v: Map,
    rpb: tl.tensor,
    rel_h: tl.tensor,
    rel_w: tl.tensor,
    extra_k: Map,
    extra_v: Map,
    out: Map,
    lse: tl.tensor,
    rows: Axis,
    columns: Axis,
    sizes: Sizes,
    scale: tl.tensor,
    PRECISION: tl.constexpr,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
) -> None:
    """Writes out, and contiguous lse `[B, Q_h, Q_w, heads]`."""
    M: tl.constexpr = QUERY_H * QUERY_W
    batch, head, tile_h, tile_w = locate(rows, columns, sizes.heads)
    queries = tile_queries(rows, columns, sizes, batch, head, tile_h, tile_w, QUERY_H, QUERY_W)
    query = load_vectors(q, batch, head, queries.row, queries.column, queries.valid)

    most, total, mean = _walk(
        query, queries, k, v, rpb, rel_h, rel_w, extra_k, extra_v, rows, columns, sizes, scale,
        batch, head, tile_h, tile_w, M, PRECISION, KEY_H, KEY_W, False,
    )  # fmt: skip
    if has_nan(mean):
        most, total, mean = _walk(
            query, queries, k, v, rpb, rel_h, rel_w, extra_k, extra_v, rows, columns, sizes, scale,
            batch, head, tile_h, tile_w, M, PRECISION, KEY_H, KEY_W, True,
        )  # fmt: skip

    store_vectors(out, batch, head, queries.row, queries.column, queries.valid, mean / total[:, None])
    tl.store(lse + queries.number, most + tl.log(total), mask=queries.valid)


@triton.jit
def _walk(
    query: tl.tensor,
    queries: Queries,
    k: Map,
    v: Map,
    rpb: tl.tensor,
    rel_h: tl.tensor,
    rel_w: tl.tensor,
    extra_k: Map,
    extra_v: Map,
    rows: Axis,
    columns: Axis,
    sizes: Sizes,
    scale: tl.tensor,
    batch: tl.tensor,
    head: tl.tensor,
    tile_h: tl.tensor,
    tile_w: tl.tensor,
    M: tl.constexpr,
    PRECISION: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    SELECTS: tl.constexpr,
) -> tl.tuple:
    """Walks over the keys of a tile; its maxima, sums of weights and weighted sums of values. See `add_sums`."""
    N: tl.constexpr = KEY_H * KEY_W
    span_h, span_w = load_span(rows, tile_h), load_span(columns, tile_w)
    n = tl.arange(0, N)
    # A finite least maximum: a row that has seen no key yet must not subtract infinities.
    most = tl.full((M,), -1e38, tl.float32)
    total = tl.zeros((M,), tl.float32)
    mean = tl.zeros((M, v.block), tl.float32)
    spoilt = tl.zeros((M,), tl.int32)
    high, wide = tl.cdiv(span_h.hi - span_h.lo, KEY_H), tl.cdiv(span_w.hi - span_w.lo, KEY_W)
    for step in range(high * wide):
        first_h, first_w = span_h.lo + step % high * KEY_H, span_w.lo + step // high * KEY_W
        row, inside_h = place_keys(rows, tile_h, first_h + n // KEY_W, span_h)
        column, inside_w = place_keys(columns, tile_w, first_w + n % KEY_W, span_w)
        key = load_vectors(k, batch, head, row, column, inside_h & inside_w)
        masked = partly(span_h, first_h, KEY_H) | partly(span_w, first_w, KEY_W)
        scores = dot(query, tl.trans(key), PRECISION) * scale
        scores = add_biases(
            scores, queries, first_h, first_w, masked, rpb, rel_h, rel_w, head, rows, columns,
            KEY_H, KEY_W, False, SELECTS,
        )  # fmt: skip
        value = load_vectors(v, batch, head, row, column, inside_h & inside_w)
        most, total, mean, spoilt = _join(most, total, mean, spoilt, scores, value, PRECISION, SELECTS)

    if extra_k is not None:
        for first in range(0, sizes.num_extra, N):
            token = first + n
            inside = token < sizes.num_extra
            key = load_vectors(extra_k, batch, head, token, token, inside)
            scores = tl.where(inside[None, :], dot(query, tl.trans(key), PRECISION) * scale, float("-inf"))
            value = load_vectors(extra_v, batch, head, token, token, inside)
            most, total, mean, spoilt = _join(most, total, mean, spoilt, scores, value, PRECISION, SELECTS)
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
    """Takes a block of keys into the running maximum, sum of weights and weighted sum of values."""
    more = tl.maximum(most, tl.max(scores, 1))
    weights = tl.exp(scores - more[:, None])
    shrink = tl.exp(most - more)
    seen = scores != float("-inf")
    mean, spoilt = add_sums(mean * shrink[:, None], spoilt, weights, value, seen, PRECISION, SELECTS)
    return more, total * shrink + tl.sum(weights, 1), mean, spoilt


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; see `registration.Forward`."""
    p = problem
    out = p.q.new_empty(*p.q.shape[:-1], p.v.shape[-1])
    lse = p.q.new_empty(p.q.shape[:-1], dtype=torch.float32)
    if not lse.numel():
        return out, lse
    arguments = operands(p) | {"out": as_map(out), "lse": lse}

    def launch(tile: Tile) -> None:
        rows, columns = place_axes(p, tile.query, by_key=False)
        grid = (p.q.shape[0] * rows.num_tiles * columns.num_tiles * p.q.shape[3],)
        attend[grid](**arguments, rows=rows, columns=columns, **tuning.constants(tile))

    tuning.run("forward", p, launch)
    return out, lse
