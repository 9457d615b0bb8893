"""Fused windowed attention on CPUs, in C++ that is compiled on first use: the CPU default if there is a compiler.

`attention.cpp` tells how the kernels work; here are the choice of tiles and the two functions that call them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visionattn_kernels._native.arguments import DTYPES, Call
from visionattn_kernels._native.build import library, unavailable
from visionattn_kernels.attention.fused import register
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.window import choose_strip


def can_run(problem: Problem) -> str | None:
    """Return why this backend cannot run the problem, or None; compile the kernels the first time."""
    if problem.q.device.type != "cpu":
        return f"it runs on CPUs, and the maps are on {problem.q.device}"
    return problem.refuse_dtype(*DTYPES) or unavailable("attention", problem.q.dtype)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Compute output and log-sum-exp; see `fused.Forward`."""
    call = _call(problem)
    out = problem.q.new_empty(*problem.q.shape[:-1], problem.v.shape[-1])
    lse = problem.q.new_empty(problem.q.shape[:-1], dtype=call.dtype)
    call.map("out", out)
    call.plain("lse", lse)
    call.run(library("attention").visionattn_forward)
    return out, lse


def backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> list[Tensor | None]:
    """Compute the gradients of all tensors; see `fused.Backward`. Bitwise repeatable for one number of threads."""
    p, call = problem, _call(problem)
    batch, heads, parts = p.k.shape[0], p.k.shape[3], call.cut_parts()
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
    call.run(library("attention").visionattn_backward)
    return [
        grad_q,
        *(x if x is None or parts == 1 else x.sum(0) for x in (grad_k, grad_v)),
        None if grad_rpb is None else grad_rpb.sum((0, 2)),
        grad_rel_h,
        grad_rel_w,
        *(None if x is None else x.sum(2).transpose(1, 2) for x in (grad_extra_k, grad_extra_v)),
    ]


def _call(problem: Problem) -> Call:
    p = problem
    return Call(p, choose_strip(p.window, p.size, p.k.shape[-1] + p.v.shape[-1]))


attention = register("native", forward, backward)
