"""Run our Triton kernels in the emulator: each launch compiles for a GPU that is not there and runs here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tests.kernels.compile_triton import Target
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
def emulated(capability: int, without: str | None = None) -> Iterator[list[str]]:
    """Run every Triton launch on CPU tensors as a GPU of this compute capability would; yield the kernels' names.

    Args:
        capability: Times ten.
        without: An instruction that is left out of every kernel, for tests of the emulator.
    """
    driver.set_active(Target(capability))
    compile_or_launch, programs, launched = JITFunction.run, dict[str, Program](), list[str]()

    def run(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> Any:
        compiled = compile_or_launch(self, *args, grid=grid, warmup=True, **kwargs)
        ptx = compiled.asm["ptx"]
        if without is not None:
            ptx = "\n".join(line for line in ptx.splitlines() if not line.strip().startswith(without))
        if ptx not in programs:
            programs[ptx] = Program(ptx)
        bound = dict(zip(self.arg_names, args, strict=False)) | kwargs
        values = [
            value
            for name, signature in compiled.src.signature.items()
            for value in flatten(signature, bound[name])
        ]  # fmt: skip
        tensors = [x for x in values if isinstance(x, torch.Tensor)]
        numbers = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in values]
        assert all(size == 1 for size in grid[1:])
        try:
            programs[ptx].run(grid[0], compiled.metadata.shared, numbers, GlobalMemory(tensors))
        except Exception as error:
            error.add_note(f"{self.__name__}, {compiled.metadata.num_warps} warps, constants {kwargs}")
            raise
        launched.append(self.__name__)
        return compiled

    JITFunction.run = run
    try:
        yield launched
    finally:
        JITFunction.run = compile_or_launch
