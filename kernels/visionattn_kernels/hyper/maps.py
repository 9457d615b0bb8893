"""Maps that lie in memory as matrices, row by row: 1x1 convolutions and standardization, on CPUs; see maps.cpp.

Operators of torch, in float32 and float64, without gradients. Shape letters: N rows, C columns.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from visionattn_kernels._native.build import library, unavailable
from visionattn_kernels.operators import define_operator
from visionattn_kernels.tracing import is_forward_mode, is_transformed

_CODES = {torch.float32: 0, torch.float64: 1}
_ENDINGS = ("sum", "gelu", "product")


def can_run(*xs: Tensor) -> bool:
    """Return whether the operators take such tensors together; compile them the first time.

    Transforms of `torch.func` do without: `standardize_columns` writes to an argument.
    """
    fitting = xs[0].dtype in _CODES and all(x.device.type == "cpu" and x.dtype == xs[0].dtype for x in xs)
    return fitting and not is_forward_mode() and not is_transformed() and unavailable("maps") is None


class _Matrix(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("pitch", ctypes.c_int64), ("columns", ctypes.c_int64))


class _Convolution(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "rows", "num_maps", "ending", "num_threads")),
        ("out", _Matrix),
        *((name, ctypes.POINTER(_Matrix)) for name in ("maps", "weights")),
        ("bias", ctypes.c_void_p),
    )


class _Moments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "rows", "num_threads")),
        *((name, _Matrix) for name in ("map", "out")),
    )


class _Standardization(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "rows", "activates", "num_threads")),
        *((name, _Matrix) for name in ("map", "out")),
        *((name, ctypes.c_void_p) for name in ("mean", "scale", "bias")),
    )


def _by_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _matrix(x: Tensor) -> _Matrix:
    return _Matrix(x.data_ptr(), x.stride(0), x.shape[1])


def convolve_maps(maps: list[Tensor], weights: list[Tensor], bias: Tensor, ending: str = "sum") -> Tensor:
    """Make `[N, C_out]` of the sum of maps `[N, C_i]` times transposed weights `[C, C_i]`, and of `bias` `[C]`.

    By `ending` it is "sum" itself, its "gelu", or the "product" of its halves: then C is twice C_out.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    fitting = [
        (len(maps[0]), w.shape[1]) == x.shape and len(w) == len(bias) for x, w in zip(maps, weights, strict=True)
    ]
    if not all(fitting):
        shapes = ", ".join(str([list(x.shape) for x in xs]) for xs in (maps, weights, [bias]))
        raise ValueError(f"maps must be [N, C_i], weights [C, C_i] and the bias [C]; got {shapes}")
    out: Tensor = _convolve_maps(maps, weights, bias, ending)
    return out


def _run_convolution(maps: list[Tensor], weights: list[Tensor], bias: Tensor, ending: str) -> Tensor:
    maps, weights, bias = [_by_rows(x) for x in maps], [_by_rows(x) for x in weights], bias.contiguous()
    out = _empty_out(maps, weights, bias, ending)
    numbers = (_CODES[out.dtype], out.shape[0], len(maps), _ENDINGS.index(ending), torch.get_num_threads())
    stacks = ((_Matrix * len(xs))(*(_matrix(x) for x in xs)) for xs in (maps, weights))
    library("maps").visionattn_convolve_maps(
        ctypes.byref(_Convolution(*numbers, _matrix(out), *stacks, bias.data_ptr()))
    )
    return out


def _empty_out(maps: list[Tensor], weights: list[Tensor], bias: Tensor, ending: str) -> Tensor:
    return maps[0].new_empty(maps[0].shape[0], weights[0].shape[0] // (2 if ending == "product" else 1))


def _count_convolution(maps: list[tuple[int, ...]], weights: list[tuple[int, ...]], *_: Any, **__: Any) -> int:
    return sum(2 * x[0] * x[1] * w[0] for x, w in zip(maps, weights, strict=True))


_convolve_maps = define_operator(
    "convolve_maps",
    "(Tensor[] maps, Tensor[] weights, Tensor bias, str ending) -> Tensor",
    _run_convolution,
    fake=_empty_out,
    flops=_count_convolution,
    device="cpu",
)


def _run_moments(x: Tensor) -> Tensor:
    x, out = _by_rows(x), _empty_moments(x)
    numbers = (_CODES[x.dtype], x.shape[0], torch.get_num_threads())
    library("maps").visionattn_column_moments(ctypes.byref(_Moments(*numbers, _matrix(x), _matrix(out))))
    return out


def _empty_moments(x: Tensor) -> Tensor:
    return x.new_empty(2, x.shape[1])


column_moments = define_operator(
    "column_moments", "(Tensor x) -> Tensor", _run_moments, fake=_empty_moments, device="cpu"
)
"""Means and variances of the columns of `[N, C]`, over N rows: `[2, C]`."""


def _run_standardization(
    x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor | None, activate: bool, out: Tensor
) -> None:
    x, mean, scale = _by_rows(x), mean.contiguous(), scale.contiguous()
    bias = None if bias is None else bias.contiguous()
    assert out.stride(1) == 1 or out.shape[1] == 1
    numbers = (_CODES[x.dtype], x.shape[0], activate, torch.get_num_threads())
    columns = (mean.data_ptr(), scale.data_ptr(), None if bias is None else bias.data_ptr())
    library("maps").visionattn_standardize_columns(
        ctypes.byref(_Standardization(*numbers, _matrix(x), _matrix(out), *columns))
    )


standardize_columns = define_operator(
    "standardize_columns",
    "(Tensor x, Tensor mean, Tensor scale, Tensor? bias, bool activate, Tensor(a!) out) -> ()",
    _run_standardization,
    fake=lambda *_: None,
    mutates=("out",),
    device="cpu",
)
"""Put `(x - mean) * scale` or its GELU, plus `bias`, in `out`, `[N, C]`, which may be `x`.

Means and scales are `[C]`, biases `[N]`. The columns of `out` are contiguous.
"""
