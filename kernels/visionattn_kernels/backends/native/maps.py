"""Maps that lie in memory as matrices, row by row: 1x1 convolutions and standardization, on CPUs; see maps.cpp.

Operators of torch, in float32 and float64, without gradients. Shape letters: N rows, C columns.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from visionattn_kernels.backends.native.build import load

_CODES = {torch.float32: 0, torch.float64: 1}
_ENDINGS = ("sum", "gelu", "product")


def can_run(*xs: Tensor) -> bool:
    """Whether the operators take such tensors together; compiles them the first time. vmap has no rule for them."""
    if torch._C._are_functorch_transforms_active():
        return False
    fitting = xs[0].dtype in _CODES and all(x.device.type == "cpu" and x.dtype == xs[0].dtype for x in xs)
    return fitting and not isinstance(load(), str)


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


def _call(function: str, arguments: ctypes.Structure) -> None:
    library = load()
    assert not isinstance(library, str), library
    getattr(library, function)(ctypes.byref(arguments))


def _by_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _matrix(x: Tensor) -> _Matrix:
    return _Matrix(x.data_ptr(), x.stride(0), x.shape[1])


@torch.library.custom_op("visionattn::convolve_maps", mutates_args=(), device_types="cpu")
def convolve_maps(maps: list[Tensor], weights: list[Tensor], bias: Tensor, ending: str = "sum") -> Tensor:
    """Makes `[N, C_out]` of the sum of maps `[N, C_i]` times transposed weights `[C, C_i]`, and of `bias` `[C]`.

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
    maps, weights, bias = [_by_rows(x) for x in maps], [_by_rows(x) for x in weights], bias.contiguous()
    out = _empty_out(maps, weights, ending)
    numbers = (_CODES[out.dtype], out.shape[0], len(maps), _ENDINGS.index(ending), torch.get_num_threads())
    stacks = ((_Matrix * len(xs))(*(_matrix(x) for x in xs)) for xs in (maps, weights))
    _call("visionattn_convolve_maps", _Convolution(*numbers, _matrix(out), *stacks, bias.data_ptr()))
    return out


def _empty_out(maps: list[Tensor], weights: list[Tensor], ending: str) -> Tensor:
    return maps[0].new_empty(maps[0].shape[0], weights[0].shape[0] // (2 if ending == "product" else 1))


@torch.library.custom_op("visionattn::column_moments", mutates_args=(), device_types="cpu")
def column_moments(x: Tensor) -> Tensor:
    """Means and variances of the columns of `[N, C]`, over N rows: `[2, C]`."""
    x, out = _by_rows(x), x.new_empty(2, x.shape[1])
    numbers = (_CODES[x.dtype], x.shape[0], torch.get_num_threads())
    _call("visionattn_column_moments", _Moments(*numbers, _matrix(x), _matrix(out)))
    return out


@torch.library.custom_op("visionattn::standardize_columns", mutates_args=("out",), device_types="cpu")
def standardize_columns(
    x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor | None, activate: bool, out: Tensor
) -> None:
    """Puts `(x - mean) * scale` or its GELU, plus `bias`, in `out`, `[N, C]`, which may be `x`.

    Means and scales are `[C]`, biases `[N]`. The columns of `out` are contiguous.
    """
    x, mean, scale = _by_rows(x), mean.contiguous(), scale.contiguous()
    bias = None if bias is None else bias.contiguous()
    assert out.stride(1) == 1 or out.shape[1] == 1
    numbers = (_CODES[x.dtype], x.shape[0], activate, torch.get_num_threads())
    columns = (mean.data_ptr(), scale.data_ptr(), None if bias is None else bias.data_ptr())
    _call("visionattn_standardize_columns", _Standardization(*numbers, _matrix(x), _matrix(out), *columns))


@convolve_maps.register_fake
def _(maps: list[Tensor], weights: list[Tensor], bias: Tensor, ending: str = "sum") -> Tensor:
    return _empty_out(maps, weights, ending)


@column_moments.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(2, x.shape[1])


@register_flop_formula(torch.ops.visionattn.convolve_maps)
def _(maps: list[tuple[int, ...]], weights: list[tuple[int, ...]], *_: object, **__: object) -> int:
    return sum(2 * x[0] * x[1] * w[0] for x, w in zip(maps, weights, strict=True))
