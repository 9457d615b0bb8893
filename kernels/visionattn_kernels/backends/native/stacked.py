"""Products and correlations of stacked matrices whose index is the last axis, on CPUs; see stacked.cpp.

All are operators of torch, in float32 and float64, with gradients of any order. N counts the matrices.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from visionattn_kernels.backends.native.build import load

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
    """Whether the operators take such tensors; compiles them the first time. Exported graphs and vmap do without."""
    if torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active():
        return False
    (first, *others) = stacks
    fitting = first.device.type == "cpu" and first.dtype in _CODES
    return fitting and all(x.dtype == first.dtype for x in others) and _is_there()


@torch.compiler.assume_constant_result
def _is_there() -> bool:
    return not isinstance(load(), str)


def _call(function: str, structure: type[ctypes.Structure], sizes: tuple[int, ...], *stacks: Tensor) -> None:
    first, library = stacks[0], load()
    assert not isinstance(library, str), library
    stacks = tuple(x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous() for x in stacks)
    numbers = (_CODES[first.dtype], first.shape[2], *sizes, torch.get_num_threads())
    arguments = structure(*numbers, *(_Stack(x.data_ptr(), *x.stride()[:2]) for x in stacks))
    getattr(library, function)(ctypes.byref(arguments))


@torch.library.custom_op("visionattn::multiply_stacked", mutates_args=(), device_types="cpu")
def multiply_stacked(a: Tensor, b: Tensor) -> Tensor:
    """Products `[H, W, N]` of `[H, M, N]` and `[M, W, N]`."""
    out = a.new_empty(a.shape[0], b.shape[1], a.shape[2])
    _call("visionattn_multiply_stacked", _Product, (a.shape[0], a.shape[1], b.shape[1]), a, b, out)
    return out


@torch.library.custom_op("visionattn::correlate_stacked", mutates_args=(), device_types="cpu")
def correlate_stacked(maps: Tensor, kernels: Tensor, top: int, left: int) -> Tensor:
    """Correlations `[H, W, N]` of `[H, W, N]` and `[kH, kW, N]`, zeros beyond the border.

    Tap `(i, j)` of a kernel meets the number of the map at `(h + i - top, w + j - left)`.
    """
    out = torch.empty_like(maps, memory_format=torch.contiguous_format)
    _call(
        "visionattn_correlate_stacked",
        _Correlation,
        (*maps.shape[:2], *kernels.shape[:2], top, left),
        maps,
        kernels,
        out,
    )
    return out


@torch.library.custom_op("visionattn::correlate_taps", mutates_args=(), device_types="cpu")
def correlate_taps(maps: Tensor, grad: Tensor, taps: list[int], top: int, left: int) -> Tensor:
    """The gradient `[kH, kW, N]` of `correlate_stacked` with respect to its kernels, of `taps` `[kH, kW]`."""
    out = maps.new_empty(*taps, maps.shape[2])
    _call("visionattn_correlate_taps", _Correlation, (*maps.shape[:2], *taps, top, left), maps, grad, out)
    return out


@multiply_stacked.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1], a.shape[2])


@correlate_stacked.register_fake
def _(maps: Tensor, kernels: Tensor, top: int, left: int) -> Tensor:
    return torch.empty_like(maps, memory_format=torch.contiguous_format)


@correlate_taps.register_fake
def _(maps: Tensor, grad: Tensor, taps: list[int], top: int, left: int) -> Tensor:
    return maps.new_empty(*taps, maps.shape[2])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.others = inputs[2:]


def _multiply_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    return (
        multiply_stacked(grad, b.transpose(0, 1)) if ctx.needs_input_grad[0] else None,
        multiply_stacked(a.transpose(0, 1), grad) if ctx.needs_input_grad[1] else None,
    )


def _correlate_back(grad: Tensor, kernels: Tensor, top: int, left: int) -> Tensor:
    """The gradient of a correlation with respect to its maps."""
    return correlate_stacked(grad, kernels.flip(0, 1), kernels.shape[0] - 1 - top, kernels.shape[1] - 1 - left)


def _correlate_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (maps, kernels), (top, left) = ctx.saved_tensors, ctx.others
    return (
        _correlate_back(grad, kernels, top, left) if ctx.needs_input_grad[0] else None,
        correlate_taps(maps, grad, list(kernels.shape[:2]), top, left) if ctx.needs_input_grad[1] else None,
        None,
        None,
    )


def _taps_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (maps, other), (_, top, left) = ctx.saved_tensors, ctx.others
    return (
        _correlate_back(other, grad, top, left) if ctx.needs_input_grad[0] else None,
        correlate_stacked(maps, grad, top, left) if ctx.needs_input_grad[1] else None,
        None,
        None,
        None,
    )


multiply_stacked.register_autograd(_multiply_backward, setup_context=_remember)
correlate_stacked.register_autograd(_correlate_backward, setup_context=_remember)
correlate_taps.register_autograd(_taps_backward, setup_context=_remember)


@register_flop_formula(torch.ops.visionattn.multiply_stacked)
def _(a: tuple[int, ...], b: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * a[2] * b[1]


@register_flop_formula(torch.ops.visionattn.correlate_stacked)
def _(maps: tuple[int, ...], kernels: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * maps[0] * maps[1] * maps[2] * kernels[0] * kernels[1]


@register_flop_formula(torch.ops.visionattn.correlate_taps)
def _(maps: tuple[int, ...], grad: tuple[int, ...], taps: list[int], *_: Any, **__: Any) -> int:
    return 2 * maps[0] * maps[1] * maps[2] * taps[0] * taps[1]
