"""Where a command computes, and in which precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""The names that ``--trainer.precision`` takes."""

AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the accelerator where there is one, else the CPU.

    Raises:
        ValueError: no such device in this machine.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: auto, cpu, cuda, cuda:1, … are possible") from error
    if device.type == "cpu":
        return device
    count = torch.accelerator.device_count() if accelerator is not None and accelerator.type == device.type else 0
    if (device.index or 0) >= count:
        raise ValueError(f"device {name!r} is not in this machine, which has {count} of type {device.type}: use auto")
    return device


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Runs what is inside in ``precision``, as Lightning's Trainer does for the same name."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()
