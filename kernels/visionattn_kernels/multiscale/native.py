"""Attention over several dilated windows on CPUs, in one pass of C++; see multiscale.cpp.

A pair of operators of torch, `visionattn::multiscale_attention` and its gradient, for any of the kernels' dtypes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from visionattn_kernels._native.arguments import DTYPES, Filled, Map
from visionattn_kernels._native.build import library, unavailable
from visionattn_kernels.device_tables import device_tables
from visionattn_kernels.multiscale.problem import MultiscaleProblem
from visionattn_kernels.operators import Call, accumulation_dtype, define_operator, first_order_alone
from visionattn_kernels.tracing import is_exporting, is_forward_mode

_MAPS = ("q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v")
_SIZES = (
    "dtype", "batch", "height", "width", "heads", "head_dim", "v_dim", "num_offsets", "num_threads", "scratch_size",
)  # fmt: skip


_BEYOND = 2**31
"""A dilation that is larger than any map, and fits a schema."""


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("rows", "columns")),
        *((name, Map) for name in _MAPS),
        *((name, ctypes.c_void_p) for name in ("bias", "grad_bias", "lse", "grad_lse", "scratch")),
    )


def can_run(problem: MultiscaleProblem) -> bool:
    """Return whether the operators take a problem; compile them the first time.

    Exported graphs and forward-mode derivatives do without them. On the meta device, which has shapes and FLOPs alone,
    nothing is compiled.
    """
    q = problem.q
    if is_exporting() or is_forward_mode() or q.dtype not in DTYPES:
        return False
    return q.device.type == "meta" or (q.device.type == "cpu" and unavailable("multiscale", q.dtype) is None)


def attention(problem: MultiscaleProblem) -> tuple[Tensor, Tensor]:
    """Compute output and log-sum-exp of the union of all windows."""
    p = problem
    out, lse = _attend(p.q, p.k, p.v, p.rpb, [min(x, _BEYOND) for x in p.dilations], p.kernel_size, p.scale)
    return out, lse


@device_tables
def tabulate_offsets(dilations: tuple[int, ...], kernel_size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Tabulate all keys, in the order of a map: row offset, column offset, and entry of the flat bias table."""
    radius = kernel_size // 2
    steps = range(-radius, radius + 1)
    offsets = sorted(
        (a * dilation, b * dilation, (scale * kernel_size + a + radius) * kernel_size + b + radius)
        for scale, dilation in enumerate(dilations)
        for a in steps
        for b in steps
        if scale == 0 or (a, b) != (0, 0)
    )
    rows, columns, entries = torch.tensor(offsets, dtype=torch.int64, device=device).T.contiguous()
    return rows, columns, entries


class _Run(Filled):
    """One call of the kernel."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None, dilations: list[int], kernel_size: int, scale: float
    ) -> None:
        super().__init__(_Arguments(), q.dtype)
        self.offsets = tabulate_offsets(tuple(dilations), kernel_size, q.device)
        rows, columns, self.entries = self.offsets
        a = self.arguments
        a.scale, a.rows, a.columns, a.num_offsets = scale, rows.data_ptr(), columns.data_ptr(), len(rows)
        a.batch, a.height, a.width, a.heads, a.head_dim = q.shape
        a.v_dim = v.shape[-1]
        for name, x in (("q", q), ("k", k), ("v", v)):
            self.map(name, x)
        self.plain("bias", None if rpb is None else rpb.flatten(1)[:, self.entries])

    def __call__(self, is_backward: bool) -> None:
        arguments = ctypes.byref(self.arguments)
        library("multiscale").visionattn_multiscale_scratch(arguments, is_backward)
        self.plain("scratch", torch.empty(self.arguments.scratch_size, dtype=self.dtype, device="cpu"))
        library("multiscale").visionattn_multiscale(arguments, is_backward)


def _forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    run, (out, lse) = _Run(q, k, v, *rest), _fake_forward(q, k, v)
    run.map("out", out)
    run.plain("lse", lse)
    run(is_backward=False)
    return out, lse


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=accumulation_dtype(q.dtype))


def _backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None, *rest: Any
) -> list[Tensor]:
    run = _Run(q, k, v, rpb, *rest)
    grads = _fake_backward(grad_out, grad_lse, q, k, v, rpb)
    run.map("grad_out", grad_out)
    for name, grad in zip("qkv", grads, strict=False):
        run.map(f"grad_{name}", grad)
    run.plain("grad_lse", grad_lse)
    if rpb is None:
        run(is_backward=True)
        return grads
    grad_bias = torch.empty(q.shape[0], q.shape[3], q.shape[1], len(run.entries), dtype=run.dtype, device="cpu")
    run.plain("grad_bias", grad_bias)
    run(is_backward=True)
    grads[3].flatten(1).zero_()[:, run.entries] = grad_bias.sum((0, 2)).to(rpb.dtype)
    return grads


def _fake_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None, *_: Any
) -> list[Tensor]:
    return [*(x.new_empty(x.shape) for x in (q, k, v)), q.new_empty(0) if rpb is None else rpb.new_empty(rpb.shape)]


def _differentiate(call: Call, grad_out: Tensor | None, grad_lse: Tensor | None) -> list[Tensor | None]:
    q, k, v, rpb = call.tensors
    assert q is not None
    assert v is not None
    if grad_out is None:
        grad_out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    grads = _attend_backward(grad_out, grad_lse, q, k, v, rpb, *call.settings)
    return [None if x is None else g for x, g in zip(call.tensors, grads, strict=True)]


def _count(q: Any, k: Any, v: Any, rpb: Any, dilations: Any, kernel_size: int, *_: Any, **__: Any) -> tuple[int, int]:
    """Return the FLOPs of products over the channels of queries, and over those of values."""
    rows, columns = tabulate_offsets(tuple(dilations), kernel_size, torch.device("cpu"))[:2]
    pairs = int(((q[1] - rows.abs()).clamp(min=0) * (q[2] - columns.abs()).clamp(min=0)).sum())
    return 2 * q[0] * q[3] * pairs * q[4], 2 * q[0] * q[3] * pairs * v[4]


def _backward_flops(grad_out: Any, grad_lse: Any, *args: Any, **_: Any) -> int:
    of_queries, of_values = _count(*args)  # scores, gradients of q and k; gradients of scores and v
    return 3 * of_queries + 2 * of_values


_SETTINGS = "int[] dilations, int kernel_size, float scale"

_attend = define_operator(
    "multiscale_attention",
    f"(Tensor q, Tensor k, Tensor v, Tensor? rpb, {_SETTINGS}) -> (Tensor, Tensor)",
    _forward,
    fake=_fake_forward,
    backward=_differentiate,
    flops=lambda *args, **_: sum(_count(*args)),
    device="cpu",
)

_attend_backward = define_operator(
    "multiscale_attention_backward",
    f"(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor? rpb, {_SETTINGS}) -> Tensor[]",
    _backward,
    fake=_fake_backward,
    backward=first_order_alone(
        "backend 'native' has first-order gradients alone; to differentiate a gradient, ask for backend='gemm'"
    ),
    flops=_backward_flops,
    device="cpu",
)
