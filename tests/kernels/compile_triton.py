"""Compiles the Triton kernels for a GPU that is not there: run as `python compile_triton.py CAPABILITY DTYPE`.

The backend runs as ever, on tensors of the CPU, with a driver that only names a target, and each launch stops after its
compilation. Prints a line per kernel: its name, and how many words of its registers were spilled to the stack.
"""

import re
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from visionattn_kernels import Window
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton import blocks
from visionattn_kernels.attention.triton.backward import backward
from visionattn_kernels.attention.triton.forward import forward
from visionattn_kernels.testing import make_inputs

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Target:
    """A driver that names a GPU."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def stack_bytes(cubin: bytes) -> int:
    """Bytes of stack that a kernel uses per thread."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", usage)
    assert found, usage
    return int(found[1])


def main(capability: int, dtype: torch.dtype) -> None:
    driver.set_active(Target(capability))
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, **kwargs: Any) -> None:
        kernel = launch(self, *args, **{**kwargs, "warmup": True})
        print(self.__name__, stack_bytes(kernel.asm["cubin"]), flush=True)

    JITFunction.run = compile_only
    blocks.product_precision = lambda device, dtype: "tf32"
    window = Window.neighborhood(7)
    x = make_inputs(window, (28, 28), batch=1, head_dim=32, rpb=True, rel=True, num_extra=3, dtype=dtype)
    problem = Problem(**{name: t.detach() for name, t in x.items()}, window=window, scale=0.2)
    out, lse = forward(problem)
    backward(problem, out, lse, torch.zeros_like(out), torch.zeros_like(lse))


if __name__ == "__main__":
    main(int(sys.argv[1]), getattr(torch, sys.argv[2]))
