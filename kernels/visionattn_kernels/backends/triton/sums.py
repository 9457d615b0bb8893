"""Gradients that sum over all queries of an image, or of all images: those of extra tokens and of positional bias.

The work is split among a bounded number of programs, each of which writes its part; the parts are then added in order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from visionattn_kernels.backends.triton import tuning
from visionattn_kernels.backends.triton.blocks import (
    Map,
    Sizes,
    add_biases,
    as_tokens,
    dot,
    load_gradients,
    load_span,
    load_vectors,
    number_queries,
    partly,
    place_keys,
    store_vectors,
    tile_queries,
)
from visionattn_kernels.backends.triton.plan import Axis, OffsetAxis, Tile, offset_axis, place_axes, query_spacing
from visionattn_kernels.problem import Problem
from visionattn_kernels.window import AxisWindow

PROGRAMS = 1024
"""About how many programs share a sum: some for each multiprocessor of a large GPU."""


@triton.jit(do_not_specialize=["sizes", "splits"])
def by_token(
    q: Map,
    extra_k: Map,
    extra_v: Map,
    grad_out: Map,
    lse: tl.tensor,
    delta: tl.tensor,
    grad_extra_k: Map,
    grad_extra_v: Map,
    splits: tl.tensor,
    sizes: Sizes,
    scale: tl.tensor,
    PRECISION: tl.constexpr,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
) -> None:
    """Writes grad_extra_k and grad_extra_v, `[splits * B, M, heads, c]`: what every splits-th block of queries adds."""
    M: tl.constexpr = QUERY_H * QUERY_W
    N: tl.constexpr = KEY_H * KEY_W
    program = tl.program_id(0)
    blocks = tl.cdiv(sizes.num_extra, N)
    head = program % sizes.heads
    token = program // sizes.heads % blocks * N + tl.arange(0, N)
    part = program // (sizes.heads * blocks)
    batch, split = part % sizes.batch, part // sizes.batch
    inside = token < sizes.num_extra
    key = load_vectors(extra_k, batch, head, token, token, inside)
    value = load_vectors(extra_v, batch, head, token, token, inside)

    total_k = tl.zeros((N, q.block), tl.float32)
    total_v = tl.zeros((N, grad_out.block), tl.float32)
    num_queries = sizes.height * sizes.width
    for first in range(split * M, num_queries, splits * M):
        position = first + tl.arange(0, M)
        row, column, valid = position // sizes.width, position % sizes.width, position < num_queries
        number = number_queries(sizes, batch, head, row, column)
        query = load_vectors(q, batch, head, row, column, valid)
        grad, log_sum, slope = load_gradients(grad_out, lse, delta, batch, head, number, row, column, valid)
        weights = tl.exp(dot(key, tl.trans(query), PRECISION) * scale - log_sum[None, :])
        total_v += dot(weights.to(grad.dtype), grad, PRECISION)
        grad_scores = weights * (dot(value, tl.trans(grad), PRECISION) - slope[None, :])
        total_k += dot(grad_scores.to(query.dtype), query, PRECISION)

    store_vectors(grad_extra_k, part, head, token, token, inside, total_k * scale)
    store_vectors(grad_extra_v, part, head, token, token, inside, total_v)


@triton.jit(do_not_specialize=["sizes", "batch_chunks", "tile_chunks"])
def by_offset(
    q: Map,
    k: Map,
    v: Map,
    rpb: tl.tensor,
    rel_h: tl.tensor,
    rel_w: tl.tensor,
    grad_out: Map,
    lse: tl.tensor,
    delta: tl.tensor,
    grad_scores: tl.tensor,
    rows: Axis,
    columns: Axis,
    places_h: OffsetAxis,
    places_w: OffsetAxis,
    batch_chunks: tl.tensor,
    tile_chunks: tl.tensor,
    sizes: Sizes,
    scale: tl.tensor,
    PRECISION: tl.constexpr,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
) -> None:
    """Writes grad_scores `[tile_chunks, batch_chunks, heads, places_h, places_w, M, N]`, each a sum over its tiles.

    A program has one place of the key rectangle, counted from the first query of a tile: pairs of the same offset then
    stand at the same place of `[M, N]` in all tiles.
    """
    M: tl.constexpr = QUERY_H * QUERY_W
    N: tl.constexpr = KEY_H * KEY_W
    program = tl.program_id(0)
    place_w = program % places_w.num_places
    place_h = program // places_w.num_places % places_h.num_places
    rest = program // (places_w.num_places * places_h.num_places)
    head, first_batch = rest % sizes.heads, rest // sizes.heads % batch_chunks
    count_h, count_w = tl.load(places_h.counts + place_h), tl.load(places_w.counts + place_w)
    m, n = tl.arange(0, M), tl.arange(0, N)

    total = tl.zeros((M, N), tl.float32)
    for member in range(rest // (sizes.heads * batch_chunks), count_h * count_w, tile_chunks):
        tile_h = tl.load(places_h.members + place_h * rows.num_tiles + member // count_w)
        tile_w = tl.load(places_w.members + place_w * columns.num_tiles + member % count_w)
        span_h, span_w = load_span(rows, tile_h), load_span(columns, tile_w)
        query_h, query_w = tl.load(rows.tiles + tile_h * 8), tl.load(columns.tiles + tile_w * 8)
        first_h = tl.load(rows.key_index + query_h) + places_h.origin + place_h * KEY_H
        first_w = tl.load(columns.key_index + query_w) + places_w.origin + place_w * KEY_W
        masked = partly(span_h, first_h, KEY_H) | partly(span_w, first_w, KEY_W)
        row, inside_h = place_keys(rows, tile_h, first_h + n // KEY_W, span_h)
        column, inside_w = place_keys(columns, tile_w, first_w + n % KEY_W, span_w)
        for batch in range(first_batch, sizes.batch, batch_chunks):
            queries = tile_queries(rows, columns, sizes, batch, head, tile_h, tile_w, QUERY_H, QUERY_W)
            query = load_vectors(q, batch, head, queries.row, queries.column, queries.valid)
            grad, log_sum, slope = load_gradients(
                grad_out, lse, delta, batch, head, queries.number, queries.row, queries.column, queries.valid
            )
            key = load_vectors(k, batch, head, row, column, inside_h & inside_w)
            value = load_vectors(v, batch, head, row, column, inside_h & inside_w)
            scores = dot(query, tl.trans(key), PRECISION) * scale
            scores = add_biases(
                scores, queries, first_h, first_w, masked, rpb, rel_h, rel_w, head, rows, columns,
                KEY_H, KEY_W, False, True,
            )  # fmt: skip
            weights = tl.exp(scores - log_sum[:, None])
            products = weights * (dot(grad, tl.trans(value), PRECISION) - slope[:, None])
            total += tl.where(scores == float("-inf"), 0.0, products)

    start = grad_scores + tl.cast(program, tl.int64) * (M * N)
    tl.store(start + m[:, None] * N + n[None, :], total)


def sum_by_token(problem: Problem, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Gradients of extra keys and values `[B, M, heads, c]`, in float32.

    Args:
        problem: With extra keys.
        arguments: Of kernels: those of `blocks.operands`, and grad_out, lse and delta.
    """
    p = problem
    assert p.extra_k is not None
    assert p.extra_v is not None
    extra, num_extra = (p.extra_k, p.extra_v), p.extra_k.shape[1]
    batch, height, width, heads, _ = p.q.shape
    arguments = {name: x for name, x in arguments.items() if name not in ("k", "v", "rpb", "rel_h", "rel_w")}
    parts: list[Tensor] = []

    def launch(tile: Tile) -> None:
        queries, tokens = math.prod(tile.query), math.prod(tile.key)
        programs = batch * heads * -(-num_extra // tokens)
        splits = max(1, min(-(-height * width // queries), PROGRAMS // programs))
        parts[:] = (x.new_empty(splits * batch, *x.shape[1:], dtype=torch.float32) for x in extra)
        by_token[(splits * programs,)](
            **arguments,
            grad_extra_k=as_tokens(parts[0]),
            grad_extra_v=as_tokens(parts[1]),
            splits=splits,
            **tuning.constants(tile),
        )

    tuning.run("token", p, launch)
    grad_k, grad_v = (x.unflatten(0, (-1, batch)).sum(0) for x in parts)
    return grad_k, grad_v


def sum_by_offset(problem: Problem, arguments: dict[str, Any]) -> Tensor:
    """The gradient of the positional bias `[heads, 2 k_h - 1, 2 k_w - 1]`, in float32; arguments as above."""
    p = problem
    batch, heads = p.q.shape[0], p.q.shape[3]
    arguments = {name: x for name, x in arguments.items() if name not in ("extra_k", "extra_v")}
    parts, origins = p.q, (0, 0)

    def launch(tile: Tile) -> None:
        nonlocal parts, origins
        rows, columns = place_axes(p, tile.query, by_key=False)
        places_h, places_w = (
            offset_axis(*args, p.q.device)
            for args in zip(p.window.axes, p.k.shape[1:3], tile.query, tile.key, strict=True)
        )
        sums = heads * places_h.num_places * places_w.num_places
        batch_chunks = min(batch, max(1, PROGRAMS // sums))
        tile_chunks = min(rows.num_tiles * columns.num_tiles, max(1, PROGRAMS // (sums * batch_chunks)))
        shape = (tile_chunks * batch_chunks, heads, places_h.num_places, places_w.num_places, *tile.query, *tile.key)
        parts, origins = p.q.new_empty(shape, dtype=torch.float32), (places_h.origin, places_w.origin)
        by_offset[(len(parts) * sums,)](
            **arguments,
            grad_scores=parts,
            rows=rows,
            columns=columns,
            places_h=places_h,
            places_w=places_w,
            batch_chunks=batch_chunks,
            tile_chunks=tile_chunks,
            **tuning.constants(tile),
        )

    tuning.run("offset", p, launch)
    # [heads, place_h, place_w, query_h, query_w, key_h, key_w]: on each axis, queries beside the keys of all places.
    pairs = parts.sum(0).permute(0, 3, 1, 5, 4, 2, 6).flatten(5, 6).flatten(2, 3)
    rows, columns = p.window.axes
    by_column = sum_diagonals(pairs, columns, origins[1])
    return sum_diagonals(by_column.permute(0, 3, 1, 2), rows, origins[0]).mT


def sum_diagonals(x: Tensor, axis: AxisWindow, origin: int) -> Tensor:
    """Sums the pairs of a tile by their offset on an axis.

    Args:
        x: `[..., queries, keys]`, something of each pair.
        axis: On which they lie.
        origin: Offset of the first pair: key less query.

    Returns:
        `[..., 2 kernel_size - 1]`, by the entries of a relative table; what lies beyond it must be zero.
    """
    queries, keys = x.shape[-2:]
    spacing = query_spacing(axis) if queries > 1 else 0
    width = keys + (queries - 1) * spacing
    # Row r moves right by (queries - 1 - r) * spacing: rows of one spacing less than the width are read as if of it.
    x = F.pad(x, (0, width - spacing - keys)).flatten(-2)
    x = F.pad(x, ((queries - 1) * spacing, spacing)).unflatten(-1, (queries, width)).sum(-2)
    before = origin - (queries - 1) * spacing + axis.kernel_size - 1
    return F.pad(x, (before, 2 * axis.kernel_size - 1 - before - width))
