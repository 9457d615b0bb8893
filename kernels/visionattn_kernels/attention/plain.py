"""Tiles of queries against their joint key window, in plain torch operators: what `torch.export` and ONNX can hold.

A rectangle of neighbouring queries is multiplied with the union of its windows, of which a mask keeps each query's own.
Tiles are looked up axis by axis, so that a traced graph holds index tables of axes, a few kilobytes, and never one of
the map. All tiles are in memory at once. Differentiable to any order.

Shape letters: n heads, T tiles of an axis, q queries and k keys of a tile, c channels, R entries of a relative table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.device_tables import device_tables
from visionattn_kernels.graph_constants import graph_constant
from visionattn_kernels.operators import accumulation_dtype
from visionattn_kernels.selected import products, sums
from visionattn_kernels.tracing import without_autocast
from visionattn_kernels.window import Window, choose_tile, tile_axis


class _Axis(NamedTuple):
    """The tables of one axis: `AxisTiles`, with what that has per pattern for every tile."""

    query: Tensor  # [T, q]
    slot: Tensor  # [Q]
    key: Tensor  # [T, k]
    inside: Tensor  # [T, k]
    offset: Tensor  # [T, q, k]
    seen: Tensor  # [T, q, k]


def can_run(problem: Problem) -> str | None:
    """Return None: it runs every problem."""
    return None


def attention(problem: Problem, need_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Compute `softmax(scale q.k + bias) v` over each query's window; see `Problem` for the shapes."""
    dtype = accumulation_dtype(problem.q.dtype)
    if dtype == problem.q.dtype:
        return _attend(problem, need_lse, dtype)
    with without_autocast(problem.q.device):  # it would round what is accumulated
        return _attend(problem, need_lse, dtype)


def parallax(problem: Problem, r: Tensor) -> Tensor:
    """Compute Parallax attention; see `parallax_attention_2d`."""
    with without_autocast(problem.q.device):
        return _attend(problem, False, accumulation_dtype(problem.q.dtype), r)[0]


def _attend(p: Problem, need_lse: bool, dtype: torch.dtype, r: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    rows, columns = (_Axis(*tables) for tables in _tabulate(tuple(p.window.to_ints()), p.size, p.q.device))
    q = _cut(p.q.to(dtype) * p.scale, rows.query, columns.query)
    k, v = (_cut(x.to(dtype), rows.key, columns.key) for x in (p.k, p.v))  # [B, n, T, T, k, c]
    if p.window.boundary == "zero":
        outside = ~(rows.inside[:, None, :, None] & columns.inside[:, None]).flatten(2)[..., None]  # [T, T, k, 1]
        k, v = k.masked_fill(outside, 0), v.masked_fill(outside, 0)
    seen = rows.seen[:, None, :, None, :, None] & columns.seen[:, None, :, None]
    seen = seen.flatten(4).flatten(2, 3)  # [T, T, q, k]
    scores = _add_biases(products(q, k, seen), p, rows, columns).masked_fill(~seen, -torch.inf)
    num_keys = scores.shape[-1]
    if p.extra_k is not None:
        scores = torch.cat([scores, q @ _per_tile(p.extra_k.to(dtype)).mT], -1)
    probs = scores.softmax(-1)
    if r is not None:
        slopes = products(_cut(r.to(dtype), rows.query, columns.query), k, seen).masked_fill(~seen, 0)
        probs = probs * (1 + (probs * slopes).sum(-1, keepdim=True) - slopes)
    out = sums(probs[..., :num_keys].masked_fill(~seen, 0), v, seen)
    if p.extra_v is not None:
        out = out + probs[..., num_keys:] @ _per_tile(p.extra_v.to(dtype))
    lse = _join(scores.logsumexp(-1, keepdim=True), rows, columns).squeeze(-1) if need_lse else None
    return _join(out, rows, columns).to(p.v.dtype), lse


@graph_constant
def _tabulate(window: tuple[int, ...], size: tuple[int, int], device: torch.device) -> list[tuple[Tensor, ...]]:
    """Return the tables of both axes as plain tuples, which are constants to the compiler."""
    return _cached_tables(window, size, device)


@device_tables
def _cached_tables(ints: tuple[int, ...], size: tuple[int, int], device: torch.device) -> list[tuple[Tensor, ...]]:
    found, window = [], Window.from_ints(ints)
    for axis, length, tile in zip(window.axes, size, choose_tile(window, size), strict=True):
        tiles = tile_axis(axis, length, tile)
        offset, seen = (x[tiles.pattern] for x in (tiles.offset, tiles.visible))
        tables = tiles.query, tiles.slot, tiles.key, tiles.inside, offset, seen
        found.append(tuple(table.to(device) for table in tables))
    return found


def _cut(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Cut a map `[B, H, W, n, c]` at the places of tiles, `[T, a]` and `[T, b]`: `[B, n, T, T, a * b, c]`."""
    x = x.index_select(1, rows.flatten()).index_select(2, columns.flatten())
    return x.unflatten(2, columns.shape).unflatten(1, rows.shape).permute(0, 5, 1, 3, 2, 4, 6).flatten(4, 5)


def _join(x: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """Join query tiles `[B, n, T, T, q, c]` to a map `[B, Q_h, Q_w, n, c]`."""
    x = x.unflatten(4, (rows.query.shape[1], columns.query.shape[1])).permute(0, 2, 4, 3, 5, 1, 6)
    return x.flatten(3, 4).flatten(1, 2).index_select(1, rows.slot).index_select(2, columns.slot)


def _per_tile(extra: Tensor) -> Tensor:
    """Lay extra keys or values `[B, M, n, c]` beside those of tiles, `[B, n, 1, 1, M, c]`."""
    return extra.transpose(1, 2)[:, :, None, None]


def _add_biases(scores: Tensor, p: Problem, rows: _Axis, columns: _Axis) -> Tensor:
    """Add biases to the scores of tiles `[B, n, T, T, q, k]`."""
    if p.rpb is not None:
        bias = p.rpb.to(scores.dtype)
        bias = bias.index_select(1, rows.offset.flatten()).index_select(2, columns.offset.flatten())
        bias = bias.unflatten(2, columns.offset.shape).unflatten(1, rows.offset.shape)
        scores = scores + bias.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4)
    for logits, offset, axis in (
        (p.rel_h, rows.offset[:, None, :, None], -1),
        (p.rel_w, columns.offset[None, :, None], -2),
    ):
        if logits is not None:
            cut = _cut(logits.to(scores.dtype), rows.query, columns.query)  # [B, n, T, T, q, R]
            offset = offset.expand(*cut.shape[2:4], rows.query.shape[1], columns.query.shape[1], -1).flatten(2, 3)
            found = cut.gather(-1, offset.expand(*cut.shape[:2], *offset.shape)).unsqueeze(axis)
            scores = (scores.unflatten(-1, (rows.key.shape[1], columns.key.shape[1])) + found).flatten(-2)
    return scores
