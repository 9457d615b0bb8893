"""Products and correlations of stacked matrices whose index is the last axis, on CPUs; see stacked.cpp.

All are operators of torch, in float32 and float64, with gradients of any order. N counts the matrices.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from visionattn_kernels._native.build import library, unavailable
from visionattn_kernels.operators import Call, define_operator
from visionattn_kernels.tracing import is_exporting, is_forward_mode

_CODES = {torch.float32: 0, torch.float64: 1}


class _Stack(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("column", ctypes.c_int64))


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "count", "rows", "inner", "columns", "num_threads")),
        *((name, _Stack) for name in ("a", "b", "out")),
    )


class _Correlation(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "count", "height", "width", "taps_h", "taps_w", "top", "left")),
        ("num_threads", ctypes.c_int64),
        *((name, _Stack) for name in ("maps", "kernels", "out")),
    )


def can_run(*stacks: Tensor) -> bool:
    """Return whether the operators take such tensors; compile them the first time.

    Exported graphs and forward-mode derivatives do without them.
    """
    if is_exporting() or is_forward_mode():
        return False
    (first, *others) = stacks
    fitting = first.device.type == "cpu" and first.dtype in _CODES
    return fitting and all(x.dtype == first.dtype for x in others) and unavailable("stacked", first.dtype) is None


def _call(function: str, structure: type[ctypes.Structure], sizes: tuple[int, ...], *stacks: Tensor) -> None:
    first = stacks[0]
    stacks = tuple(x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous() for x in stacks)
    numbers = (_CODES[first.dtype], first.shape[2], *sizes, torch.get_num_threads())
    arguments = structure(*numbers, *(_Stack(x.data_ptr(), *x.stride()[:2]) for x in stacks))
    getattr(library("stacked"), function)(ctypes.byref(arguments))


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    out = _empty_product(a, b)
    _call("visionattn_multiply_stacked", _Product, (a.shape[0], a.shape[1], b.shape[1]), a, b, out)
    return out


def _empty_product(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1], a.shape[2])


def _multiply_backward(call: Call, grad: Tensor) -> list[Tensor | None]:
    a, b = call.tensors
    assert a is not None
    assert b is not None
    return [
        multiply_stacked(grad, b.transpose(0, 1)) if call.needed[0] else None,
        multiply_stacked(a.transpose(0, 1), grad) if call.needed[1] else None,
    ]


def _correlate(maps: Tensor, kernels: Tensor, top: int, left: int) -> Tensor:
    out = _empty_map(maps)
    sizes = (*maps.shape[:2], *kernels.shape[:2], top, left)
    _call("visionattn_correlate_stacked", _Correlation, sizes, maps, kernels, out)
    return out


def _empty_map(maps: Tensor, *_: Any) -> Tensor:
    return maps.new_empty(maps.shape)


def _correlate_backward(call: Call, grad: Tensor) -> list[Tensor | None]:
    (maps, kernels), (top, left) = call.tensors, call.settings
    assert kernels is not None
    return [
        _correlate_back(grad, kernels, top, left) if call.needed[0] else None,
        correlate_taps(maps, grad, list(kernels.shape[:2]), top, left) if call.needed[1] else None,
    ]


def _correlate_back(grad: Tensor, kernels: Tensor, top: int, left: int) -> Tensor:
    """Compute the gradient of a correlation with respect to its maps."""
    out: Tensor = correlate_stacked(grad, kernels.flip(0, 1), kernels.shape[0] - 1 - top, kernels.shape[1] - 1 - left)
    return out


def _correlate_taps(maps: Tensor, grad: Tensor, taps: list[int], top: int, left: int) -> Tensor:
    out = _empty_taps(maps, grad, taps)
    _call("visionattn_correlate_taps", _Correlation, (*maps.shape[:2], *taps, top, left), maps, grad, out)
    return out


def _empty_taps(maps: Tensor, grad: Tensor, taps: list[int], *_: int) -> Tensor:
    return maps.new_empty(*taps, maps.shape[2])


def _taps_backward(call: Call, grad: Tensor) -> list[Tensor | None]:
    (maps, other), (_, top, left) = call.tensors, call.settings
    assert other is not None
    return [
        _correlate_back(other, grad, top, left) if call.needed[0] else None,
        correlate_stacked(maps, grad, top, left) if call.needed[1] else None,
    ]


multiply_stacked = define_operator(
    "multiply_stacked",
    "(Tensor a, Tensor b) -> Tensor",
    _multiply,
    fake=_empty_product,
    backward=_multiply_backward,
    flops=lambda a, b, **_: 2 * a[0] * a[1] * a[2] * b[1],
    device="cpu",
)
"""Products `[H, W, N]` of `[H, M, N]` and `[M, W, N]`."""

correlate_stacked = define_operator(
    "correlate_stacked",
    "(Tensor maps, Tensor kernels, SymInt top, SymInt left) -> Tensor",
    _correlate,
    fake=_empty_map,
    backward=_correlate_backward,
    flops=lambda maps, kernels, *_, **__: 2 * math.prod(maps) * math.prod(kernels[:2]),
    device="cpu",
)
"""Correlations `[H, W, N]` of `[H, W, N]` and `[kH, kW, N]`, zeros beyond the border.

Tap `(i, j)` of a kernel meets the number of the map at `(h + i - top, w + j - left)`.
"""

correlate_taps = define_operator(
    "correlate_taps",
    "(Tensor maps, Tensor grad, SymInt[] taps, SymInt top, SymInt left) -> Tensor",
    _correlate_taps,
    fake=_empty_taps,
    backward=_taps_backward,
    flops=lambda maps, grad, taps, *_, **__: 2 * math.prod(maps) * math.prod(taps),
    device="cpu",
)
"""The gradient `[kH, kW, N]` of `correlate_stacked` with respect to its kernels, of `taps` `[kH, kW]`."""
