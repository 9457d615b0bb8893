"""Compile the CPU kernels on first use: one compiler call per unit, no build system, no headers of torch.

A unit is a C++ file with the headers beside it, and becomes a library of its own: nobody waits for the kernels of an
operator that is never called.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch

from visionattn_kernels._native.arguments import ABI
from visionattn_kernels.graph_constants import graph_constant

FOLDER = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")

_log = logging.getLogger(__name__)


@graph_constant
def unavailable(unit: str, dtype: torch.dtype | None = None) -> str | None:
    """Return why a unit has no kernels, or none for a dtype; None if it has.

    The first call compiles `unit`.cpp with `$CXX` (c++ by default) into `$TORCH_EXTENSIONS_DIR/visionattn`
    (~/.cache/torch_extensions), once per source, compiler and processor. It warns if that fails.
    """
    found = _load(unit)
    if isinstance(found, str):
        return found
    if dtype == torch.float16 and not found.visionattn_has_float16():
        return "the compiler knows no 16-bit floats on this machine"
    return None


def library(unit: str) -> ctypes.CDLL:
    """Return the compiled kernels of a unit.

    Raises:
        RuntimeError: There are none; see `unavailable`.
    """
    found = _load(unit)
    if isinstance(found, ctypes.CDLL):
        return found
    raise RuntimeError(f"visionattn's compiled CPU kernels are missing: {found}")


@cache
def _load(unit: str) -> ctypes.CDLL | str:
    found = _try_to_load(unit, os.environ.get("CXX") or "c++")
    if isinstance(found, str):
        warnings.warn(
            f"visionattn's compiled CPU kernels are missing ({found}): attention on the CPU is 2 to 5 times slower",
            stacklevel=3,
        )
    return found


def _try_to_load(unit: str, compiler: str) -> ctypes.CDLL | str:
    try:
        path = _place(unit, compiler)
        if not _is_whole(path):
            with _lock(path):
                if not _is_whole(path):  # no other process has compiled them meanwhile
                    _log.info("compiling kernels into %s", path)
                    _compile(unit, compiler, path)
        kernels = ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as failure:
        lines = [line for line in failure.stderr.splitlines() if "error" in line] or [f"status {failure.returncode}"]
        return f"{compiler} could not compile it: {lines[0]}"
    except OSError as failure:
        return f"it needs a C++ compiler ($CXX) and a writable $TORCH_EXTENSIONS_DIR: {failure}"
    except RuntimeError as failure:  # of Path.home
        return f"it needs $TORCH_EXTENSIONS_DIR or a home directory: {failure}"
    if hasattr(kernels, "visionattn_abi"):  # of arguments.h
        abi = (ctypes.c_int64 * len(ABI))()
        kernels.visionattn_abi(abi)
        if tuple(abi) != ABI:
            return f"{path} has ABI {tuple(abi)} in place of {ABI}: delete it"
    return kernels


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process at a time compile, so that the other ranks of a machine wait; without locks, let all compile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not POSIX
        yield
        return
    with path.with_suffix(".lock").open("w") as file:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _place(unit: str, compiler: str) -> Path:
    """Return the file of a unit's kernels for this compiler and processor."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    sources = (FOLDER / f"{unit}.cpp", *sorted(FOLDER.glob("*.h")))
    key = "\n".join(
        [*(x.read_text(encoding="utf-8") for x in sources), compiler, *FLAGS, platform.platform(), _processor()]
    )
    return Path(root) / "visionattn" / f"native-{unit}-{_digest(key.encode()).hex()[:16]}.so"


def _is_whole(path: Path) -> bool:
    """Return whether the file is complete: the system's loader of a truncated file ends the process."""
    if not path.exists():
        return False
    content = path.read_bytes()
    return content[-_DIGEST_BYTES:] == _digest(content[:-_DIGEST_BYTES])


def _compile(unit: str, compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [*compiler.split(), *FLAGS, str(FOLDER / f"{unit}.cpp"), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        with built.open("r+b") as file:
            file.write(_digest(file.read()))  # a loader does not read the end of the file
        built.replace(path)  # atomic


_DIGEST_BYTES = hashlib.sha256().digest_size


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _processor() -> str:
    """Return what `-march=native` depends on, because machines may share a cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
