"""Run our Triton kernels in the emulator: each launch compiles for a GPU that is not there and runs here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from kernels.bench.offline import ARCHS, Driver, for_device
from tests.kernels.ptx.global_memory import GlobalMemory
from tests.kernels.ptx.program import Program


def flatten(signature: Any, argument: Any) -> Iterator[Any]:
    """Yield the arguments that a compiled kernel takes: tuples are flattened, constants are left out."""
    if isinstance(signature, tuple):
        for inner, value in zip(signature, argument, strict=True):
            yield from flatten(inner, value)
    elif signature != "constexpr":
        yield argument


@contextmanager
def emulated(name: str, precision: str = "ieee", without: str | None = None) -> Iterator[list[str]]:
    """Run every Triton launch on CPU tensors as a GPU would; yield the kernels' names.

    Args:
        name: Of the GPU, one of `ARCHS`.
        precision: Of products of float32: "ieee", "tf32" or "tf32x3".
        without: An instruction that is left out of every kernel, for tests of the emulator.
    """
    compile_or_launch, programs, launched, arch = JITFunction.run, dict[str, Program](), list[str](), ARCHS[name]
    driver.set_active(Driver(arch))

    def run(self: Any, given: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> Any:
        args = (for_device(given, arch, precision), *args)
        compiled = compile_or_launch(self, *args, grid=grid, warmup=True, **options)
        if compiled.metadata.shared > arch.shared_program:
            raise triton.OutOfResources(compiled.metadata.shared, arch.shared_program, "shared memory")
        ptx = compiled.asm["ptx"]
        if without is not None:
            ptx = "\n".join(line for line in ptx.splitlines() if not line.strip().startswith(without))
        if ptx not in programs:
            programs[ptx] = Program(ptx)
        bound = dict(zip(self.arg_names, args, strict=False)) | options
        values = [x for key, kind in compiled.src.signature.items() for x in flatten(kind, bound[key])]
        tensors = [x for x in values if isinstance(x, torch.Tensor)]
        numbers = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in values]
        assert all(size == 1 for size in grid[1:])
        try:
            programs[ptx].run(grid[0], compiled.metadata.shared, numbers, GlobalMemory(tensors))
        except Exception as error:
            error.add_note(f"{self.__name__}, constants {options}")
            raise
        launched.append(f"{self.__name__}/{compiled.metadata.num_warps}")
        return compiled

    with patch.object(JITFunction, "run", run):
        yield launched
