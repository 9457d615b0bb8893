"""Compilation of the kernels on first use: one compiler call, no build system, no headers of torch."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in ("attention.cpp", "maps.cpp", "stacked.cpp", "worker.h", "products.h", "arguments.h", "vectors.h")
)
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")

_log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | str:
    """The compiled kernels, or one line that says why there are none.

    They are compiled by `$CXX` (c++ by default) into `$TORCH_EXTENSIONS_DIR/visionattn` (~/.cache/torch_extensions),
    once per source, compiler and processor.
    """
    compiler = os.environ.get("CXX", "c++")
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    key = "\n".join(
        [*(x.read_text(encoding="utf-8") for x in SOURCES), compiler, *FLAGS, platform.platform(), _processor()]
    )
    path = Path(root) / "visionattn" / f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    try:
        if not path.exists():
            _log.info("compiling kernels into %s", path)
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
        units = [str(x) for x in SOURCES if x.suffix == ".cpp"]
        command = [*compiler.split(), *FLAGS, *units, "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        built.replace(path)  # whole or not at all, whoever else compiles it now


def _processor() -> str:
    """What `-march=native` depends on: a cache folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
