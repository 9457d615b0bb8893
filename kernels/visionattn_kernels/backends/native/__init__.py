"""Fused windowed attention on CPUs, in C++ that is compiled on first use: the CPU default where a compiler is at hand.

`attention.cpp` tells how the kernels work; here are the choice of tiles and the two functions that call them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visionattn_kernels.backends.native.arguments import DTYPES, Call
from visionattn_kernels.backends.native.build import library, unavailable
from visionattn_kernels.problem import Problem
from visionattn_kernels.registration import register
from visionattn_kernels.window import AxisWindow

STRIP = 8
"""Neighbouring query columns of a tile: more would multiply with keys that most of them do not see."""

PANEL_BYTES = 1 << 18
"""Packed keys and values of a tile, at most, where the window allows: a quarter of a usual second-level cache."""


def can_run(problem: Problem) -> str | None:
    """The reason why this backend cannot run the problem, or None; compiles the kernels the first time."""
    if problem.q.device.type != "cpu":
        return f"it runs on CPUs, and the maps are on {problem.q.device}"
    if problem.q.dtype not in DTYPES:
        return f"dtype {problem.q.dtype} is not one of {', '.join(map(str, DTYPES))}"
    return unavailable(problem.q.dtype)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; see `registration.Forward`."""
    call = Call(problem, choose_tile(problem))
    out = problem.q.new_empty(*problem.q.shape[:-1], problem.v.shape[-1])
    lse = problem.q.new_empty(problem.q.shape[:-1], dtype=call.dtype)
    call.map("out", out)
    call.plain("lse", lse)
    call.run(library().visionattn_forward)
    return out, lse


def backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> list[Tensor | None]:
    """Gradients of all tensors; see `registration.Backward`. Bitwise repeatable for one number of threads."""
    p, call = problem, Call(problem, choose_tile(problem))
    batch, heads, threads = p.k.shape[0], p.k.shape[3], call.arguments.num_threads
    # Strips of one head run side by side only where there are too few heads: each run of them has gradients of its own.
    strips = sum(math.ceil(n / call.arguments.columns.tile) for n in call.tables[1].queries.tolist())
    parts = call.arguments.num_parts = min(strips, math.ceil(2 * threads / max(1, batch * heads)))
    call.map("out", out)
    call.map("grad_out", grad_out)
    call.plain("lse", lse)
    call.plain("grad_lse", grad_lse)

    def zeros(name: str, x: Tensor | None, *shape: int) -> Tensor | None:
        return None if x is None else call.plain(f"grad_{name}", torch.zeros(shape, dtype=call.dtype, device=x.device))

    grad_q = call.plain("grad_q", p.q.new_empty(p.q.shape, dtype=call.dtype))
    grad_k, grad_v = (zeros(name, x, parts, *x.shape) for name, x in (("k", p.k), ("v", p.v)))
    tables = tuple(2 * k - 1 for k in p.window.kernel_size)
    grad_rpb = zeros("rpb", p.rpb, batch, heads, parts, *tables)
    grad_rel_h, grad_rel_w = (
        zeros(name, x, *p.q.shape[:-1], n)
        for name, x, n in zip(("rel_h", "rel_w"), (p.rel_h, p.rel_w), tables, strict=True)
    )
    grad_extra_k, grad_extra_v = (
        zeros(name, x, batch, heads, parts, call.arguments.num_extra, n)
        for name, x, n in (("extra_k", p.extra_k, p.k.shape[-1]), ("extra_v", p.extra_v, p.v.shape[-1]))
    )
    call.run(library().visionattn_backward)
    return [
        grad_q,
        *(x if x is None or parts == 1 else x.sum(0) for x in (grad_k, grad_v)),
        None if grad_rpb is None else grad_rpb.sum((0, 2)),
        grad_rel_h,
        grad_rel_w,
        *(None if x is None else x.sum(2).transpose(1, 2) for x in (grad_extra_k, grad_extra_v)),
    ]


def choose_tile(problem: Problem) -> tuple[int, int]:
    """Rows and columns of a tile of queries: `STRIP` columns, or whole blocks, and as many rows as panels have room."""
    rows, columns = problem.window.axes
    height, width = problem.k.shape[1:3]
    strip = _even_tile(columns, width, STRIP)
    row_bytes = 4 * (problem.k.shape[-1] + problem.v.shape[-1]) * (strip * columns.query_stride + columns.kernel_size)
    # Few rows would pack the same keys again and again.
    most = max(PANEL_BYTES // row_bytes - rows.kernel_size, rows.kernel_size // 2, 4)
    return _even_tile(rows, height, most), strip


def _even_tile(axis: AxisWindow, length: int, most: int) -> int:
    """Cuts the queries of a dilation group into tiles of nearly equal size, along the blocks that share a window."""
    queries = math.ceil(axis.num_queries(length) / axis.dilation)
    block = max(1, axis.stride // axis.query_stride)
    if 1 < block <= most:
        return most // block * block
    whole = min(queries, block) if block > 1 else queries
    return math.ceil(whole / math.ceil(whole / most))


attention = register("native", forward, backward)
