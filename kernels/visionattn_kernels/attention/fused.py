"""Register a fused backend as a pair of torch operators.

A backend gives two plain functions of a `Problem`; `register` makes `visionattn::NAME_attention` and
`visionattn::NAME_attention_backward` of them and returns what the dispatch table wants. They have a first-order
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from visionattn_kernels.attention.problem import TENSORS, Problem
from visionattn_kernels.operators import Call, accumulation_dtype, define_operator, first_order_alone
from visionattn_kernels.window import Window

_PROBLEM = ", ".join(
    [*(f"Tensor{'?' * (i > 2)} {name}" for i, name in enumerate(TENSORS)), "int[] window, float scale"]
)
FORWARD_SCHEMA = f"({_PROBLEM}) -> (Tensor, Tensor)"
BACKWARD_SCHEMA = f"(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, {_PROBLEM}) -> Tensor[]"

Forward = Callable[[Problem], tuple[Tensor, Tensor]]
"""Output `[B, Q_h, Q_w, heads, v_dim]` in v's dtype and log-sum-exp `[B, Q_h, Q_w, heads]` in float32 or wider."""


Backward = Callable[[Problem, Tensor, Tensor, Tensor, Tensor | None], Sequence[Tensor | None]]
"""From problem, out, lse, grad_out and grad_lse to the gradients of `TENSORS`, in that order, each of as many elements
as its tensor and in any shape and dtype; None for an absent one."""


def register(
    name: str, forward: Forward, backward: Backward
) -> Callable[[Problem, bool], tuple[Tensor, Tensor | None]]:
    """Register the two operators of a fused backend.

    Args:
        name: Of the backend.
        forward: Computes output and log-sum-exp.
        backward: Computes the gradients of all tensors.

    Returns:
        The backend's `attention` for the dispatch table.
    """

    def run_forward(*args: Any) -> tuple[Tensor, Tensor]:
        return forward(_problem(args))

    def run_backward(grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *args: Any) -> list[Tensor]:
        problem = _problem(args)
        grads = backward(problem, out, lse, grad_out, grad_lse)
        return [
            problem.q.new_empty(0) if x is None or g is None else g.reshape(x.shape).to(x.dtype).contiguous()
            for x, g in zip(args, grads, strict=False)
        ]

    def differentiate(call: Call, grad_out: Tensor | None, grad_lse: Tensor | None) -> list[Tensor | None]:
        out, lse = call.outputs
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        grads = attend_backward(grad_out, grad_lse, out, lse, *call.tensors, *call.settings)
        return [None if x is None else g for x, g in zip(call.tensors, grads, strict=True)]

    attend = define_operator(
        f"{name}_attention",
        FORWARD_SCHEMA,
        run_forward,
        fake=_fake_forward,
        backward=differentiate,
        saves_outputs=True,
        flops=_flops,
    )
    attend_backward = define_operator(
        f"{name}_attention_backward",
        BACKWARD_SCHEMA,
        run_backward,
        fake=_fake_backward,
        backward=first_order_alone(
            f"backend {name!r} has first-order gradients alone; to differentiate a gradient, ask for backend='gemm'"
        ),
        flops=_backward_flops,
    )

    def attention(problem: Problem, need_lse: bool) -> tuple[Tensor, Tensor | None]:
        out, lse = attend(*(getattr(problem, x) for x in TENSORS), problem.window.to_ints(), problem.scale)
        return out, lse if need_lse else None

    return attention


def _problem(args: Sequence[Any]) -> Problem:
    *tensors, window, scale = args
    return Problem(**dict(zip(TENSORS, tensors, strict=True)), window=Window.from_ints(window), scale=scale)


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=accumulation_dtype(q.dtype))


def _fake_backward(grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *args: Any) -> list[Tensor]:
    return [args[0].new_empty(0) if x is None else x.new_empty(x.shape) for x in args[: len(TENSORS)]]


def _flops(q: Any, k: Any, v: Any, rpb: Any, rel_h: Any, rel_w: Any, extra_k: Any, *args: Any, **kwargs: Any) -> int:
    window = Window.from_ints(args[1])
    pairs = window.count_pairs((k[1], k[2])) + q[1] * q[2] * (extra_k[1] if extra_k else 0)
    return int(2 * q[0] * q[3] * pairs * (q[4] + v[4]))


def _backward_flops(
    grad_out: Any, grad_lse: Any, out: Any, lse: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any
) -> int:
    # Scores, their gradient, and the gradients of q, k and v: 3 products over head_dim, 2 over v's.
    forward = _flops(q, k, v, *args)
    return forward * (3 * int(q[4]) + 2 * int(v[4])) // (int(q[4]) + int(v[4]))
