"""Arguments of a CPU kernel: structures that mirror arguments.h, filled from a `Problem`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.operators import accumulation_dtype
from visionattn_kernels.window import AxisTables, tabulate_axis

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""The codes of arguments.h."""


class _Axis(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_groups", "query_step", "tile")),
        *((name, ctypes.c_void_p) for name in ("keys", "queries", "first_query", "index", "start", "stop")),
    )


class Map(ctypes.Structure):
    """A heads-last map, or a null pointer."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "row", "column", "head")),
    )

    @classmethod
    def of(cls, x: Tensor) -> Map:
        """Return pointer and strides of a map whose last dimension is contiguous; `[B, M, heads, c]` has one row."""
        batch, *rows, column, head, _ = x.stride()
        return cls(x.data_ptr(), batch, *(rows or [0]), column, head)


_MAPS = ("q", "k", "v", "extra_k", "extra_v", "out", "grad_out", "r")
_PLAIN = ("rpb", "rel_h", "rel_w", "lse", "grad_lse")
_GRADS = ("q", "k", "v", "rpb", "rel_h", "rel_w", "extra_k", "extra_v", "r")


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "batch", "heads", "head_dim", "v_dim", "num_extra")),
        *((name, ctypes.c_int64) for name in ("num_parts", "num_threads", "queries_h", "queries_w")),
        *((name, ctypes.c_int64) for name in ("keys_h", "keys_w", "kernel_h", "kernel_w")),
        ("scale", ctypes.c_double),
        ("rows", _Axis),
        ("columns", _Axis),
        *((name, Map) for name in _MAPS),
        *((name, ctypes.c_void_p) for name in _PLAIN),
        *((f"grad_{name}", ctypes.c_void_p) for name in _GRADS),
    )


ABI = (1, ctypes.sizeof(_Arguments))
"""Version of the interface and bytes of its structure, as `visionattn_abi` of attention.cpp returns them."""


class Call:
    """The arguments of one call, and the tensors that must live as long."""

    def __init__(self, problem: Problem, tile: tuple[int, int]) -> None:
        p, axes = problem, problem.window.axes
        size = (p.k.shape[1], p.k.shape[2])
        self.problem = problem
        self.dtype = accumulation_dtype(p.q.dtype)
        self.alive: list[Any] = []
        self.arguments = a = _Arguments()
        a.dtype, a.scale, a.num_threads = DTYPES[p.q.dtype], p.scale, torch.get_num_threads()
        a.batch, a.queries_h, a.queries_w, a.heads, a.head_dim = p.q.shape
        a.keys_h, a.keys_w, a.v_dim = *size, p.v.shape[-1]
        a.kernel_h, a.kernel_w = p.window.kernel_size
        a.num_extra = 0 if p.extra_k is None else p.extra_k.shape[1]
        a.num_parts = 1
        self.tables = [tabulate_axis(axis, n, torch.device("cpu")) for axis, n in zip(axes, size, strict=True)]
        a.rows, a.columns = (self._axis(*args) for args in zip(p.window.dilation, self.tables, tile, strict=True))
        for name in ("q", "k", "v", "extra_k", "extra_v"):
            self.map(name, getattr(p, name))
        for name in ("rpb", "rel_h", "rel_w"):
            self.plain(name, getattr(p, name))

    @staticmethod
    def _axis(dilation: int, tables: AxisTables, tile: int) -> _Axis:
        pointers = (getattr(tables, name).data_ptr() for name, *_ in _Axis._fields_[3:])
        return _Axis(dilation, tables.query_step, tile, *pointers)

    def map(self, name: str, x: Tensor | None) -> None:
        """Store a heads-last tensor's pointer and strides."""
        if x is None:
            return
        x = x.to(self.problem.q.dtype)
        x = x if x.stride(-1) == 1 else x.contiguous()
        self.alive.append(x)
        setattr(self.arguments, name, Map.of(x))

    def plain(self, name: str, x: Tensor | None) -> Tensor | None:
        """Store a contiguous tensor of the accumulation type, and return it."""
        if x is None:
            return None
        x = x.to(self.dtype).contiguous()
        self.alive.append(x)
        setattr(self.arguments, name, x.data_ptr())
        return x

    def cut_parts(self) -> int:
        """Cut the strips of a head into parts, each with key gradients of its own, and return the number of parts.

        Strips of one head run side by side only if there are too few heads.
        """
        a = self.arguments
        strips = sum(math.ceil(n / a.columns.tile) for n in self.tables[1].queries.tolist())
        a.num_parts = min(strips, math.ceil(2 * a.num_threads / max(1, a.batch * a.heads)))
        return int(a.num_parts)

    def run(self, kernel: Callable[..., int]) -> None:
        """Call a kernel.

        Raises:
            RuntimeError: no memory for the keys of a tile.
        """
        if not kernel(ctypes.byref(self.arguments)):
            kernel_size = self.problem.window.kernel_size
            raise RuntimeError(f"can't allocate memory for the keys of a window of {kernel_size}: pass a smaller one")
