"""Fused windowed attention on CPUs, in C++ that is compiled on first use: the CPU default where a compiler is at hand.

`native.cpp` holds the kernels; here are their compilation, their arguments, and the choice of tiles.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import math
import os
import platform
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionattn_kernels.problem import Problem
from visionattn_kernels.registration import accumulation_dtype, register
from visionattn_kernels.window import AxisTables, AxisWindow, Window, tabulate_axis

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""The codes of `native.cpp`."""

STRIP = 8
"""Neighbouring query columns of a tile: more would multiply with keys that most of them do not see."""

PANEL_BYTES = 1 << 18
"""Packed keys and values of a tile, at most, where the window allows: a quarter of a usual second-level cache."""

_log = logging.getLogger(__name__)


def can_run(problem: Problem) -> str | None:
    """The reason why this backend cannot run the problem, or None; compiles the kernels the first time."""
    if problem.q.device.type != "cpu":
        return f"it runs on CPUs, and the maps are on {problem.q.device}"
    if problem.q.dtype not in DTYPES:
        return f"dtype {problem.q.dtype} is not one of {', '.join(map(str, DTYPES))}"
    return _missing(problem.q.dtype)


@torch.compiler.assume_constant_result
def _missing(dtype: torch.dtype) -> str | None:
    library = load()
    if isinstance(library, str):
        return library
    if dtype == torch.float16 and not library.visionattn_has_float16():
        return "the compiler knows no 16-bit floats on this machine"
    return None


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | str:
    """The compiled kernels, or one line that says why there are none.

    They are compiled by `$CXX` (c++ by default) into `$TORCH_EXTENSIONS_DIR/visionattn` (~/.cache/torch_extensions),
    once per source, compiler and processor.
    """
    compiler = os.environ.get("CXX", "c++")
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    key = "\n".join([SOURCE.read_text(encoding="utf-8"), compiler, *FLAGS, platform.platform(), _processor()])
    path = Path(root) / "visionattn" / f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    try:
        if not path.exists():
            _log.info("compiling %s into %s", SOURCE.name, path)
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as failure:
        lines = [line for line in failure.stderr.splitlines() if "error" in line] or [f"status {failure.returncode}"]
        return f"{compiler} could not compile it: {lines[0]}"
    except OSError as failure:
        return f"it needs a C++ compiler ($CXX) and a writable $TORCH_EXTENSIONS_DIR: {failure}"


def _compile(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [*compiler.split(), *FLAGS, str(SOURCE), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        built.replace(path)  # whole or not at all, whoever else compiles it now


def _processor() -> str:
    """What `-march=native` depends on: a cache folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


class _Axis(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_groups", "query_step", "tile")),
        *((name, ctypes.c_void_p) for name in ("keys", "queries", "first_query", "index", "start", "stop")),
    )


class _Map(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "row", "column", "head")),
    )


_MAPS = ("q", "k", "v", "extra_k", "extra_v", "out", "grad_out")
_PLAIN = ("rpb", "rel_h", "rel_w", "lse", "grad_lse")
_GRADS = ("q", "k", "v", "rpb", "rel_h", "rel_w", "extra_k", "extra_v")


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "batch", "heads", "head_dim", "v_dim", "num_extra")),
        *((name, ctypes.c_int64) for name in ("num_parts", "num_threads", "queries_h", "queries_w")),
        *((name, ctypes.c_int64) for name in ("keys_h", "keys_w", "kernel_h", "kernel_w")),
        ("scale", ctypes.c_double),
        ("rows", _Axis),
        ("columns", _Axis),
        *((name, _Map) for name in _MAPS),
        *((name, ctypes.c_void_p) for name in _PLAIN),
        *((f"grad_{name}", ctypes.c_void_p) for name in _GRADS),
    )


class _Call:
    """The arguments of one call, and what must live as long as it."""

    def __init__(self, problem: Problem) -> None:
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
        tiles = choose_tile(p.window, size, a.head_dim, a.v_dim)
        self.tables = [tabulate_axis(axis, n, torch.device("cpu")) for axis, n in zip(axes, size, strict=True)]
        a.rows, a.columns = (self._axis(*args) for args in zip(p.window.dilation, self.tables, tiles, strict=True))
        for name in ("q", "k", "v", "extra_k", "extra_v"):
            self.map(name, getattr(p, name))
        for name in ("rpb", "rel_h", "rel_w"):
            self.plain(name, getattr(p, name))

    @staticmethod
    def _axis(dilation: int, tables: AxisTables, tile: int) -> _Axis:
        pointers = (getattr(tables, name).data_ptr() for name, _ in _Axis._fields_[3:])
        return _Axis(dilation, tables.query_step, tile, *pointers)

    def map(self, name: str, x: Tensor | None) -> None:
        """Passes a heads-last tensor, by its strides; `[B, M, heads, c]` counts as a map of one row."""
        if x is None:
            return
        x = x.to(self.problem.q.dtype)
        x = x if x.stride(-1) == 1 else x.contiguous()
        self.alive.append(x)
        batch, *rows, column, head, _ = x.stride()
        setattr(self.arguments, name, _Map(x.data_ptr(), batch, *(rows or [0]), column, head))

    def plain(self, name: str, x: Tensor | None) -> Tensor | None:
        """Passes a tensor as a contiguous one of the accumulation type, which is returned."""
        if x is None:
            return None
        x = x.to(self.dtype).contiguous()
        self.alive.append(x)
        setattr(self.arguments, name, x.data_ptr())
        return x

    def run(self, function: str) -> None:
        """Calls a kernel."""
        library = load()
        assert not isinstance(library, str), library
        getattr(library, function)(ctypes.byref(self.arguments))


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; see `registration.Forward`."""
    call = _Call(problem)
    out = problem.q.new_empty(*problem.q.shape[:-1], problem.v.shape[-1])
    lse = problem.q.new_empty(problem.q.shape[:-1], dtype=call.dtype)
    call.map("out", out)
    call.plain("lse", lse)
    call.run("visionattn_forward")
    return out, lse


def backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> list[Tensor | None]:
    """Gradients of all tensors; see `registration.Backward`. Bitwise repeatable for one number of threads."""
    p, call = problem, _Call(problem)
    batch, heads, threads = p.k.shape[0], p.k.shape[3], call.arguments.num_threads
    strips = int((-(call.tables[1].queries // -call.arguments.columns.tile)).sum())
    parts = call.arguments.num_parts = max(1, min(strips, -(2 * threads // -max(1, batch * heads))))
    call.map("out", out)
    call.map("grad_out", grad_out)
    call.plain("lse", lse)
    call.plain("grad_lse", grad_lse)

    def zeros(name: str, x: Tensor | None, *parts: int) -> Tensor | None:
        if x is None:
            return None
        return call.plain(f"grad_{name}", torch.zeros(*parts, *x.shape, dtype=call.dtype, device=x.device))

    grad_q = call.plain("grad_q", p.q.new_empty(p.q.shape, dtype=call.dtype))
    grad_k, grad_v = zeros("k", p.k, parts), zeros("v", p.v, parts)
    grad_rpb = None if p.rpb is None else zeros("rpb", p.rpb[0], batch, heads, parts)
    grad_rel_h, grad_rel_w = zeros("rel_h", p.rel_h), zeros("rel_w", p.rel_w)
    grad_extra_k, grad_extra_v = (
        None if x is None else zeros(name, x[0, :, 0], batch, heads, parts)
        for name, x in (("extra_k", p.extra_k), ("extra_v", p.extra_v))
    )
    call.run("visionattn_backward")
    assert grad_k is not None
    assert grad_v is not None
    return [
        grad_q,
        grad_k[0] if parts == 1 else grad_k.sum(0),
        grad_v[0] if parts == 1 else grad_v.sum(0),
        None if grad_rpb is None else grad_rpb.sum((0, 2)),
        grad_rel_h,
        grad_rel_w,
        *(None if x is None else x.sum(2).transpose(1, 2) for x in (grad_extra_k, grad_extra_v)),
    ]


@lru_cache(maxsize=1024)
def choose_tile(window: Window, size: tuple[int, int], head_dim: int, v_dim: int) -> tuple[int, int]:
    """Rows and columns of a tile of queries: `STRIP` columns, or whole blocks, and as many rows as panels have room."""
    rows, columns = window.axes
    width = _even_tile(columns, size[1], STRIP)
    row_bytes = 4 * (head_dim + v_dim) * (width * columns.query_stride + columns.kernel_size)
    # Few rows would pack the same keys again and again.
    height = max(PANEL_BYTES // row_bytes - rows.kernel_size, rows.kernel_size // 2, 4)
    return _even_tile(rows, size[0], height), width


def _even_tile(axis: AxisWindow, length: int, most: int) -> int:
    """Cuts the queries of a dilation group into tiles of nearly equal size, along the blocks that share a window."""
    queries = -(axis.num_queries(length) // -axis.dilation)
    block = max(1, axis.stride // axis.query_stride)
    if 1 < block <= most:
        return most // block * block
    whole = min(queries, block) if block > 1 else queries
    return math.ceil(whole / math.ceil(whole / most))


attention = register("native", forward, backward)
