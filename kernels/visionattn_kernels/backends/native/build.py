"""Compilation of the kernels on first use: one compiler call, no build system, no headers of torch."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

import torch

from visionattn_kernels.graph_constants import graph_constant

SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in ("attention.cpp", "maps.cpp", "stacked.cpp", "worker.h", "products.h", "arguments.h", "vectors.h")
)
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")

_log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | str:
    """The compiled kernels, or one line that says why there are none, which is also a warning.

    They are compiled by `$CXX` (c++ by default) into `$TORCH_EXTENSIONS_DIR/visionattn` (~/.cache/torch_extensions),
    once per source, compiler and processor.
    """
    library = _load(os.environ.get("CXX") or "c++")
    if isinstance(library, str):
        warnings.warn(
            f"visionattn's compiled CPU kernels are missing ({library}): attention on the CPU is 2 to 5 times slower",
            stacklevel=2,
        )
    return library


@graph_constant
def missing(dtype: torch.dtype) -> str | None:
    """Why there are no kernels for a dtype, or None; compiles them the first time."""
    library = load()
    if isinstance(library, str):
        return library
    if dtype == torch.float16 and not library.visionattn_has_float16():
        return "the compiler knows no 16-bit floats on this machine"
    return None


def _load(compiler: str) -> ctypes.CDLL | str:
    try:
        path = _place(compiler)
        if not _is_whole(path):
            _log.info("compiling kernels into %s", path)
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as failure:
        lines = [line for line in failure.stderr.splitlines() if "error" in line] or [f"status {failure.returncode}"]
        return f"{compiler} could not compile it: {lines[0]}"
    except OSError as failure:
        return f"it needs a C++ compiler ($CXX) and a writable $TORCH_EXTENSIONS_DIR: {failure}"
    except RuntimeError as failure:  # of Path.home
        return f"it needs $TORCH_EXTENSIONS_DIR or a home directory: {failure}"


def _place(compiler: str) -> Path:
    """Where the kernels lie that this compiler makes for this processor."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    key = "\n".join(
        [*(x.read_text(encoding="utf-8") for x in SOURCES), compiler, *FLAGS, platform.platform(), _processor()]
    )
    return Path(root) / "visionattn" / f"native-{_digest(key.encode()).hex()[:16]}.so"


def _is_whole(path: Path) -> bool:
    """Whether the kernels are there, to the last byte: the loader of a file cut short ends the process."""
    if not path.exists():
        return False
    content = path.read_bytes()
    return content[-_DIGEST_BYTES:] == _digest(content[:-_DIGEST_BYTES])


def _compile(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        units = [str(x) for x in SOURCES if x.suffix == ".cpp"]
        command = [*compiler.split(), *FLAGS, *units, "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        with built.open("r+b") as file:
            file.write(_digest(file.read()))  # behind all that a loader reads
        built.replace(path)  # whole or not at all, whoever else compiles it now


_DIGEST_BYTES = hashlib.sha256().digest_size


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _processor() -> str:
    """What `-march=native` depends on: a cache folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
