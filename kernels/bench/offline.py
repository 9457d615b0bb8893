"""Compile the Triton kernels for a GPU that is not there.

The backend runs its own host functions on tensors of the CPU, with a driver that only names a target. Each launch stops
after its compilation. No tensor is read, so that large maps cost no memory.
"""

from __future__ import annotations

import io
import json
import math
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton import tuning
from visionattn_kernels.attention.triton.backward import backward
from visionattn_kernels.attention.triton.forward import forward
from visionattn_kernels.attention.triton.given import Given
from visionattn_kernels.attention.triton.plan import Tile

KINDS = ("forward", "query", "key", "token", "offset")
"""Kernels by the name under which they are tuned."""


class Arch(NamedTuple):
    """Limits of one multiprocessor.

    Attributes:
        backend: Of Triton.
        target: As Triton names it.
        warp_size: Threads of a warp.
        warps: Of all programs.
        programs: How many there may be.
        registers: Of all threads, 32 bits each.
        shared: Bytes of shared memory.
        shared_program: The most that one program may take of it.
        reserved: Bytes of shared memory that the system takes per program.
    """

    backend: str
    target: int | str
    warp_size: int
    warps: int
    programs: int
    registers: int
    shared: int
    shared_program: int
    reserved: int


ARCHS = {
    "sm_80": Arch("cuda", 80, 32, 64, 32, 65536, 164 << 10, 163 << 10, 1 << 10),
    "sm_90": Arch("cuda", 90, 32, 64, 32, 65536, 228 << 10, 227 << 10, 1 << 10),
    "sm_100": Arch("cuda", 100, 32, 64, 32, 65536, 228 << 10, 227 << 10, 1 << 10),
    "gfx942": Arch("hip", "gfx942", 64, 32, 32, 4 * 512 * 64, 64 << 10, 64 << 10, 0),
}


class Driver:
    """A driver that names a GPU."""

    def __init__(self, arch: Arch) -> None:
        self.target = GPUTarget(arch.backend, arch.target, arch.warp_size)
        # Triton asks for the target of a device once.
        self.device = list(ARCHS.values()).index(arch)

    def get_current_target(self) -> GPUTarget:
        """Return what is compiled for."""
        return self.target

    def get_current_device(self) -> int:
        """Return a number of its own."""
        return self.device

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0


def for_device(given: Given, arch: Arch, precision: str) -> Given:
    """Return a problem with what host functions choose by the device of the tensors, which is the CPU here."""
    chosen = {"precision": precision, "by_thread": arch.backend == "cuda"}
    return given._replace(**{name: triton.language.constexpr(x) for name, x in chosen.items()})


@dataclass(frozen=True)
class Compiled:
    """One compiled kernel.

    Attributes:
        kind: One of `KINDS`.
        name: Of the function.
        tile: That it was launched with.
        programs: That were launched.
        kernel: As Triton returns it: `asm` by stage, `metadata`.
        seconds: That its compilation took, when it was compiled.
        warnings: Codes of the warnings of ptxas, such as C7515.
    """

    kind: str
    name: str
    tile: Tile
    programs: int
    kernel: Any
    seconds: float
    warnings: tuple[str, ...]


def compile_kernels(
    problem: Problem,
    arch: str,
    kinds: Collection[str] = KINDS,
    tile: Tile | None = None,
    precision: str = "ieee",
) -> list[Compiled]:
    """Compile the kernels of a problem, forward and backward.

    Args:
        problem: Its tensors lie on the CPU, and are not read.
        arch: One of `ARCHS`.
        kinds: Which kernels.
        tile: For all of them, instead of the default ones.
        precision: Of products of float32: "ieee", "tf32" or "tf32x3".
    """
    found: list[Compiled] = []
    with _launches(ARCHS[arch], kinds, tile, precision, found.append):
        # Forward always runs, even if it compiles nothing: backward expects its results as they lie in memory.
        out, lse = forward(problem)
        if set(kinds) - {"forward"}:
            backward(problem, out, lse, torch.empty_like(out), torch.empty_like(lse) if problem.need_lse else None)
    return found


@contextmanager
def _launches(
    arch: Arch, kinds: Collection[str], tile: Tile | None, precision: str, add: Callable[[Compiled], None]
) -> Iterator[None]:
    """Turn launches into compilations, and hand each on."""
    now: list[tuple[str, Tile]] = []
    run, launch = tuning.run, JITFunction.run

    def run_kind(kind: str, problem: Problem, launch_tile: Callable[[Tile], None]) -> None:
        def noted(chosen: Tile) -> None:
            now.append((kind, chosen))
            launch_tile(chosen)

        if kind not in kinds:
            # Host functions may need what a launch prepares; nothing is compiled for it.
            now.append(("", _SMALLEST))
            launch_tile(_SMALLEST)
        elif tile is None:
            run(kind, problem, noted)
        else:
            noted(tile)

    def compile_only(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        kind, chosen = now[-1]
        if not kind:
            return
        given, *rest = args
        given = for_device(given, arch, precision)
        kernel, seconds, log = _compile(self, lambda: launch(self, given, *rest, grid=grid, warmup=True, **options))
        if kernel.metadata.shared > arch.shared_program:
            raise triton.OutOfResources(kernel.metadata.shared, arch.shared_program, "shared memory")
        codes = tuple(sorted(set(re.findall(r"\bC\d{4}\b", log))))
        add(Compiled(kind, self.__name__, chosen, math.prod(grid), kernel, seconds, codes))

    driver.set_active(Driver(arch))
    with (
        patch.object(tuning, "run", run_kind),
        patch.object(tuning, "_chosen", type(tuning._chosen)()),
        patch.object(JITFunction, "run", compile_only),
    ):
        yield


_SMALLEST = Tile((4, 4), (4, 4), 1, 1)


def _compile(function: Any, launch: Callable[[], Any]) -> tuple[Any, float, str]:
    """Return a kernel, the seconds of its compilation and the log of ptxas; both are kept beside Triton's cache."""
    printed, start = io.StringIO(), time.perf_counter()
    with _knob(knobs.nvidia, "dump_ptxas_log", True), redirect_stdout(printed):
        kernel = launch()
        notes = Path(knobs.cache.dir) / "compile_report" / f"{kernel.hash}.json"
        if not printed.getvalue() and not notes.exists() and "cubin" in kernel.asm:
            # Another program has compiled it, and the log is lost.
            function.device_caches.clear()
            with _knob(knobs.compilation, "always_compile", True):
                kernel = launch()
    if printed.getvalue() or not notes.exists():
        notes.parent.mkdir(parents=True, exist_ok=True)
        notes.write_text(json.dumps([time.perf_counter() - start, printed.getvalue()]))
    seconds, log = json.loads(notes.read_text())
    return kernel, seconds, log


@contextmanager
def _knob(group: Any, name: str, value: object) -> Iterator[None]:
    old = getattr(group, name)
    setattr(group, name, value)
    try:
        yield
    finally:
        setattr(group, name, old)
