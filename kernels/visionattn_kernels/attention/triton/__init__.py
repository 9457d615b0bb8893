"""Fused kernels for CUDA, with every bias, in Triton; a program holds a tile of queries or keys and walks the rest.

Triton is imported with the first problem that runs. Under `TRITON_INTERPRET=1` the kernels also run on the CPU, slowly:
that is for tests.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from visionattn_kernels.attention.devices import TRITON_INSTALLED, refuse_triton
from visionattn_kernels.attention.fused import register
from visionattn_kernels.attention.problem import Problem

MAX_HEAD_DIM = 256
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def can_run(problem: Problem) -> str | None:
    """Return why this backend cannot run the problem, or None."""
    device = problem.q.device
    if reason := problem.refuse_dtype(torch.float16, torch.bfloat16, torch.float32):
        return reason
    head_dim = max(problem.q.shape[-1], problem.v.shape[-1])
    if head_dim > MAX_HEAD_DIM:
        return f"head_dim {head_dim} exceeds {MAX_HEAD_DIM}"
    if device.type == "cuda":
        return refuse_triton(device)
    if device.type != "cpu":
        return f"device {device.type} is not cuda"
    if not TRITON_INSTALLED:
        return "triton is not installed"
    if not INTERPRETED:
        return "on the CPU it only runs in Triton's interpreter, for tests; TRITON_INTERPRET=1 is not set"
    return None


def _forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Compute output and log-sum-exp; see `fused.Forward`."""
    from visionattn_kernels.attention.triton.forward import forward

    return forward(problem)


def _backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> Sequence[Tensor | None]:
    """Compute the gradients of all tensors; see `fused.Backward`."""
    from visionattn_kernels.attention.triton.backward import backward

    return backward(problem, out, lse, grad_out, grad_lse)


attention = register("triton", _forward, _backward)
