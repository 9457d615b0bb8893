"""A problem as the kernels receive it: one aggregate of maps, axes and constants, and sizes beside it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton.maps import Map, as_map, as_tokens
from visionattn_kernels.attention.triton.precision import product_precision
from visionattn_kernels.attention.triton.rule import Axis, as_axis

BIAS_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of biases that kernels read; others are converted."""

LEAST_SCALE = 1e-6
"""Smaller scales, zero, and those above its inverse are multiplied into the queries; of negative ones the sign."""


class Sizes(NamedTuple):
    """Sizes for which kernels are not compiled again: images, heads, both maps, extra tokens, tiles on each axis."""

    batch: int
    heads: int
    queries_h: int
    queries_w: int
    keys_h: int
    keys_w: int
    num_extra: int
    tiles_h: int = 1
    tiles_w: int = 1

    def cut(self, given: Given, tile: tuple[int, int], by_key: bool) -> Sizes:
        """Return the same with numbers of tiles: of keys, or of queries."""
        rows, columns, (high, wide) = given.rows, given.columns, tile
        if by_key:
            tiles_h, tiles_w = rows.num_key_tiles(self.keys_h, high), columns.num_key_tiles(self.keys_w, wide)
        else:
            tiles_h, tiles_w = rows.num_query_tiles(self.queries_h, high), columns.num_query_tiles(self.queries_w, wide)
        return self._replace(tiles_h=tiles_h, tiles_w=tiles_w)

    def grid(self) -> tuple[int]:
        """Return one program per tile, head and image."""
        return (self.batch * self.tiles_h * self.tiles_w * self.heads,)


class Given(NamedTuple):
    """A problem as every kernel receives it, see `Problem`; tensors that are absent or empty are None.

    Attributes:
        q, k, v: Heads-last maps.
        extra_k, extra_v: Tokens, as maps of one column.
        rpb: Contiguous `[heads, R_h, R_w]`.
        rel_h, rel_w: Maps of R_h and R_w channels.
        scale: Factor of the products `q.k`, positive.
        rows, columns: The axes.
        grad_out: Heads-last gradient of the output, for backward kernels.
        sums: Map of two channels, for backward kernels: the log-sum-exp in base 2, and delta, which is
            sum(out grad_out) - grad_lse. A score has the gradient weight (grad_weight - delta).
        by_thread: See `load_scattered`.
        precision: How products of float32 are rounded.
    """

    q: Map
    k: Map
    v: Map
    rpb: Any
    rel_h: Map | None
    rel_w: Map | None
    extra_k: Any
    extra_v: Any
    rows: Axis
    columns: Axis
    scale: Any
    grad_out: Any
    sums: Any
    by_thread: tl.constexpr
    precision: tl.constexpr  # last: in nested tuples that follow it Triton 3.6 loses constants inside loops


def as_given(problem: Problem) -> tuple[Given, Sizes]:
    """Return a problem for kernels, and its sizes."""
    p = problem
    rows, columns = p.window.axes
    extra_k, extra_v = (None if x is None or not x.shape[1] else as_tokens(x.to(p.q)) for x in (p.extra_k, p.extra_v))
    rpb, rel_h, rel_w = (x if x is None or x.dtype in BIAS_DTYPES else x.float() for x in (p.rpb, p.rel_h, p.rel_w))
    given = Given(
        q=as_map(p.q),
        k=as_map(p.k),
        v=as_map(p.v),
        rpb=None if rpb is None else rpb.contiguous(),
        rel_h=None if rel_h is None else as_map(rel_h),
        rel_w=None if rel_w is None else as_map(rel_w),
        extra_k=extra_k,
        extra_v=extra_v,
        rows=as_axis(rows),
        columns=as_axis(columns),
        scale=p.scale,
        grad_out=None,
        sums=None,
        by_thread=_as_constant(p.q.is_cuda and torch.version.hip is None),
        precision=_as_constant(product_precision(p.q.device, p.q.dtype)),
    )
    batch, height, width, heads, _ = p.q.shape
    return given, Sizes(batch, heads, height, width, *p.size, 0 if p.extra_k is None else p.extra_k.shape[1])


@lru_cache
def _as_constant(value: str | bool) -> tl.constexpr:
    return tl.constexpr(value)


def fold_scale(problem: Problem) -> tuple[Problem, float]:
    """Return the problem with a scale that kernels can divide by, and by what its gradient of q is to be multiplied."""
    scale, size = problem.scale, abs(problem.scale)
    if LEAST_SCALE <= scale <= 1 / LEAST_SCALE:
        return problem, 1.0
    factor, scale = (-1.0, size) if LEAST_SCALE <= size <= 1 / LEAST_SCALE else (scale, 1.0)
    return replace(problem, q=problem.q * factor, scale=scale), factor
