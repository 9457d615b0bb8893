"""Questions to a device that more than one backend asks."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec

import torch

from visionattn_kernels.graph_constants import graph_constant

TRITON_INSTALLED = find_spec("triton") is not None

LEAST_CAPABILITY = 8


@graph_constant
def refuse_triton(device: torch.device) -> str | None:
    """Return why nothing that Triton compiles runs on a CUDA or ROCm device, or None."""
    if not TRITON_INSTALLED:
        return "triton is not installed"
    gpu = torch.cuda.get_device_properties(device)
    if gpu.major < LEAST_CAPABILITY:
        return f"compute capability {gpu.major}.{gpu.minor} is below {LEAST_CAPABILITY}.0"
    return None


def find_cpp_compiler() -> str | None:
    """Return the path of the C++ compiler that torch's compiler calls on this machine, or None."""
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    command = os.environ.get("CXX", usual).split()
    return shutil.which(command[0]) if command else None


def describe_device(device: torch.device) -> str:
    """Return what `explain` calls a device, and whether no backend has been tried on its kind."""
    if device.type == "cuda":
        return "cuda" if torch.version.hip is None else "cuda (ROCm, untried)"
    return device.type if device.type == "cpu" else f"{device.type} (untried)"
