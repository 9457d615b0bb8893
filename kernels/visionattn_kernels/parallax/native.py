"""Fused Parallax attention on CPUs, in C++: `_native/parallax.cpp` tells how the kernels work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visionattn_kernels._native.arguments import DTYPES, Call
from visionattn_kernels._native.build import library, unavailable
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.operators import Call as OperatorCall
from visionattn_kernels.operators import accumulation_dtype, define_operator, first_order_alone
from visionattn_kernels.window import Window, choose_strip

_PROBLEM = "Tensor q, Tensor k, Tensor v, Tensor r, Tensor? rpb, int[] window, float scale"


def can_run(problem: Problem) -> str | None:
    """Return why this backend cannot run the problem, or None; compile the kernels the first time."""
    if problem.q.device.type != "cpu":
        return f"it runs on CPUs, and the maps are on {problem.q.device}"
    return problem.refuse_dtype(*DTYPES) or unavailable("parallax", problem.q.dtype)


def attention(problem: Problem, r: Tensor) -> Tensor:
    """Compute Parallax attention; see `parallax_attention_2d`."""
    p = problem
    out: Tensor = _attend(p.q, p.k, p.v, r, p.rpb, p.window.to_ints(), p.scale)[0]
    return out


def _forward(q: Tensor, k: Tensor, v: Tensor, r: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    call = _call(q, k, v, r, *rest)
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    lse = q.new_empty(q.shape[:-1], dtype=call.dtype)
    call.map("out", out)
    call.plain("lse", lse)
    call.run(library("parallax").visionattn_parallax_forward)
    return out, lse


def _backward(
    grad_out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, r: Tensor, rpb: Tensor | None, *rest: Any
) -> list[Tensor]:
    call = _call(q, k, v, r, rpb, *rest)
    parts = call.cut_parts()
    call.map("grad_out", grad_out)
    call.plain("lse", lse)

    def gradient(name: str, shape: tuple[int, ...]) -> Tensor:
        grad = q.new_zeros(shape, dtype=call.dtype)
        call.plain(f"grad_{name}", grad)
        return grad

    grad_q, grad_r = gradient("q", q.shape), gradient("r", r.shape)
    grad_k, grad_v = (gradient(name, (parts, *x.shape)) for name, x in (("k", k), ("v", v)))
    batch, heads = q.shape[0], q.shape[3]
    grad_rpb = None if rpb is None else gradient("rpb", (batch, heads, parts, *rpb.shape[1:]))
    call.run(library("parallax").visionattn_parallax_backward)
    grads = [
        grad_q.to(q.dtype),
        *((x[0] if parts == 1 else x.sum(0)).to(q.dtype) for x in (grad_k, grad_v)),
        grad_r.to(q.dtype),
    ]
    no_table = q.new_empty(0)
    return [*grads, no_table if rpb is None or grad_rpb is None else grad_rpb.sum((0, 2)).to(rpb.dtype)]


def _call(q: Tensor, k: Tensor, v: Tensor, r: Tensor, rpb: Tensor | None, window: list[int], scale: float) -> Call:
    problem = Problem(q, k, v, Window.from_ints(window), scale, rpb)
    call = Call(problem, choose_strip(problem.window, problem.size, k.shape[-1] + v.shape[-1]))
    call.map("r", r)
    return call


def _differentiate(call: OperatorCall, grad_out: Tensor | None, grad_lse: Tensor | None) -> list[Tensor | None]:
    out, lse = call.outputs
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grads = _attend_backward(grad_out, lse, *call.tensors, *call.settings)
    return [None if x is None else g for x, g in zip(call.tensors, grads, strict=True)]


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=accumulation_dtype(q.dtype))


def _fake_backward(grad_out: Tensor, lse: Tensor, *args: Any) -> list[Tensor]:
    *tensors, _, _ = args
    return [args[0].new_empty(0) if x is None else x.new_empty(x.shape) for x in tensors]


def _flops(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return _count(q, k, v, args[2], 2, 1)


def _backward_flops(grad_out: Any, lse: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    # Both scores, and the gradients of q, r and twice k; the gradient of the weights, and that of v.
    return _count(q, k, v, args[2], 6, 2)


def _count(q: Any, k: Any, v: Any, window: Any, of_keys: int, of_values: int) -> int:
    """Count the FLOPs of products over the channels of keys and of values, from shapes."""
    pairs = Window.from_ints(window).count_pairs((k[1], k[2]))
    return int(2 * q[0] * q[3] * pairs * (of_keys * q[4] + of_values * v[4]))


_attend = define_operator(
    "parallax_attention",
    f"({_PROBLEM}) -> (Tensor, Tensor)",
    _forward,
    fake=_fake_forward,
    backward=_differentiate,
    saves_outputs=True,
    flops=_flops,
)
_attend_backward = define_operator(
    "parallax_attention_backward",
    f"(Tensor grad_out, Tensor lse, {_PROBLEM}) -> Tensor[]",
    _backward,
    fake=_fake_backward,
    backward=first_order_alone(
        "backend 'native' has first-order gradients alone; to differentiate a gradient, ask for backend='unfused'"
    ),
    flops=_backward_flops,
)
