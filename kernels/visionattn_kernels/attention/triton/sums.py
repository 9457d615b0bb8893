"""Gradients that sum over all queries of an image, or of all images: those of extra tokens and of positional bias.

The work is split among a bounded number of programs, each of which writes its part; the parts are then added in order.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton import tuning
from visionattn_kernels.attention.triton.blocks import LOG2E, dot, load_gradients, score_keys
from visionattn_kernels.attention.triton.given import Given, Sizes
from visionattn_kernels.attention.triton.maps import Map, as_tokens, load_vectors, store_vectors
from visionattn_kernels.attention.triton.places import Place, strips_of_queries, tile_queries
from visionattn_kernels.attention.triton.plan import Places, Tile, places_of, query_spacing
from visionattn_kernels.window import AxisWindow

PROGRAMS = 1024
"""About how many programs share a sum: some for each multiprocessor of a large GPU."""


@triton.jit(do_not_specialize=["sizes", "splits"])
def by_token(
    given: Given,
    grad_extra_k: Map,
    grad_extra_v: Map,
    splits: tl.tensor,
    sizes: Sizes,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
) -> None:
    """Write grad_extra_k and grad_extra_v, `[splits * B, M, heads, c]`: what every splits-th block of queries adds."""
    M: tl.constexpr = QUERY_H * QUERY_W
    N: tl.constexpr = KEY_H * KEY_W
    program = tl.program_id(0)
    blocks = tl.cdiv(sizes.num_extra, N)
    head = program % sizes.heads
    token = program // sizes.heads % blocks * N + tl.arange(0, N)
    part = program // (sizes.heads * blocks)
    place, split = Place(part % sizes.batch, head, None, None), part // sizes.batch
    inside = token < sizes.num_extra
    key = load_vectors(given.extra_k, place.batch, head, token, token, inside)
    value = load_vectors(given.extra_v, place.batch, head, token, token, inside)

    total_k = tl.zeros((N, given.q.block), tl.float32)
    total_v = tl.zeros((N, given.grad_out.block), tl.float32)
    zeros = tl.zeros((N, M), tl.float32)
    num_queries = sizes.queries_h * sizes.queries_w
    for first in range(split * M, num_queries, splits * M):
        position = first + tl.arange(0, M)
        row, column, valid = position // sizes.queries_w, position % sizes.queries_w, position < num_queries
        query = load_vectors(given.q, place.batch, head, row, column, valid)
        grad, log_sum, slope = load_gradients(given, place, row, column, valid)
        scores = dot(key, tl.trans(query), zeros, given.precision)
        weights = tl.exp2(scores * (given.scale * LOG2E) - log_sum[None, :])
        grad_scores = weights * (dot(value, tl.trans(grad), zeros, given.precision) - slope[None, :])
        total_v = dot(weights.to(grad.dtype), grad, total_v, given.precision)
        total_k = dot(grad_scores.to(query.dtype), query, total_k, given.precision)

    store_vectors(grad_extra_k, part, head, token, token, inside, total_k * given.scale)
    store_vectors(grad_extra_v, part, head, token, token, inside, total_v)


@triton.jit(do_not_specialize=["places_h", "places_w", "batch_chunks", "tile_chunks", "sizes"])
def by_offset(
    given: Given,
    grad_scores: tl.tensor,
    places_h: Places,
    places_w: Places,
    batch_chunks: tl.tensor,
    tile_chunks: tl.tensor,
    sizes: Sizes,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
) -> None:
    """Write grad_scores `[tile_chunks, batch_chunks, heads, places_h, places_w, M, N]`, each a sum over its tiles.

    A program has one place of the key rectangle, counted from the first query of a tile: pairs of the same offset then
    stand at the same place of `[M, N]` in all tiles.
    """
    M: tl.constexpr = QUERY_H * QUERY_W
    N: tl.constexpr = KEY_H * KEY_W
    program = tl.program_id(0)
    place_w = program % places_w.total
    place_h = program // places_w.total % places_h.total
    rest = program // (places_w.total * places_h.total)
    head, first_batch = rest % sizes.heads, rest // sizes.heads % batch_chunks
    m, n = tl.arange(0, M), tl.arange(0, N)
    factor = given.scale * LOG2E

    zeros = tl.zeros((M, N), tl.float32)
    total = zeros
    for tile in range(rest // (sizes.heads * batch_chunks), sizes.tiles_h * sizes.tiles_w, tile_chunks):
        rows, columns = strips_of_queries(given, sizes, tile // sizes.tiles_w, tile % sizes.tiles_w, QUERY_H, QUERY_W)
        first_h = rows.group.first_index + given.rows.spacing * rows.first + places_h.origin + place_h * KEY_H
        first_w = columns.group.first_index + given.columns.spacing * columns.first + places_w.origin + place_w * KEY_W
        queries, scores_of = tile_queries(given, Place(0, head, rows, columns), QUERY_H, QUERY_W)
        meets = (first_h < rows.span.hi) & (first_h + KEY_H > rows.span.lo)
        meets &= (first_w < columns.span.hi) & (first_w + KEY_W > columns.span.lo)
        for batch in range(tl.where(meets, first_batch, sizes.batch), sizes.batch, batch_chunks):
            place = Place(batch, head, rows, columns)
            query = load_vectors(given.q, batch, head, queries.row, queries.column, queries.valid)
            grad, log_sum, slope = load_gradients(given, place, queries.row, queries.column, queries.valid)
            _, value, scores = score_keys(
                given, place, query, queries, scores_of, first_h, first_w, KEY_H, KEY_W, False, True
            )
            weights = tl.exp2(scores * factor - log_sum[:, None])
            products = weights * (dot(grad, tl.trans(value), zeros, given.precision) - slope[:, None])
            total += tl.where(scores == float("-inf"), 0.0, products)

    start = grad_scores + tl.cast(program, tl.int64) * (M * N)
    tl.store(start + m[:, None] * N + n[None, :], total)


def sum_by_token(problem: Problem, given: Given, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Compute gradients of extra keys and values `[B, M, heads, c]`, in float32."""
    p = problem
    assert p.extra_k is not None
    assert p.extra_v is not None
    extra, num_extra = (p.extra_k, p.extra_v), p.extra_k.shape[1]
    batch, height, width, heads, _ = p.q.shape
    parts: list[Tensor] = []

    def launch(tile: Tile) -> None:
        queries, tokens = math.prod(tile.query), math.prod(tile.key)
        programs = batch * heads * -(-num_extra // tokens)
        splits = max(1, min(-(-height * width // queries), PROGRAMS // programs))
        parts[:] = (x.new_empty(splits * batch, *x.shape[1:], dtype=torch.float32) for x in extra)
        grads = as_tokens(parts[0]), as_tokens(parts[1])
        tuning.start(by_token, (splits * programs,), given, *grads, splits, sizes, tile=tile)

    tuning.run("token", p, launch)
    grad_k, grad_v = (x.unflatten(0, (-1, batch)).sum(0) for x in parts)
    return grad_k, grad_v


def sum_by_offset(problem: Problem, given: Given, sizes: Sizes) -> Tensor:
    """Compute the gradient of the positional bias `[heads, 2 k_h - 1, 2 k_w - 1]`, in float32."""
    p = problem
    batch, heads = p.q.shape[0], p.q.shape[3]
    parts, origins = p.q, (0, 0)

    def launch(tile: Tile) -> None:
        nonlocal parts, origins
        cut = sizes.cut(given, tile.query, by_key=False)
        places_h, places_w = (
            places_of(*args) for args in zip(p.window.axes, p.size, tile.query, tile.key, strict=True)
        )
        sums = heads * places_h.total * places_w.total
        # Batches first share a program: what depends on the tile alone is then computed once.
        tile_chunks = min(cut.tiles_h * cut.tiles_w, max(1, PROGRAMS // sums))
        batch_chunks = min(batch, max(1, PROGRAMS // (sums * tile_chunks)))
        shape = (tile_chunks * batch_chunks, heads, places_h.total, places_w.total, *tile.query, *tile.key)
        parts, origins = p.q.new_empty(shape, dtype=torch.float32), (places_h.origin, places_w.origin)
        chunks = batch_chunks, tile_chunks
        tuning.start(by_offset, (len(parts) * sums,), given, parts, places_h, places_w, *chunks, cut, tile=tile)

    tuning.run("offset", p, launch)
    # [heads, place_h, place_w, query_h, query_w, key_h, key_w]: on each axis, queries beside the keys of all places.
    pairs = parts.sum(0).permute(0, 3, 1, 5, 4, 2, 6).flatten(5, 6).flatten(2, 3)
    rows, columns = p.window.axes
    by_column = sum_diagonals(pairs, columns, origins[1])
    return sum_diagonals(by_column.permute(0, 3, 1, 2), rows, origins[0]).mT


def sum_diagonals(x: Tensor, axis: AxisWindow, origin: int) -> Tensor:
    """Sum the pairs of a tile by their offset on an axis.

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
