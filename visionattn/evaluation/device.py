"""Device and precision of an evaluation."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""The names that ``--trainer.precision`` takes."""

AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device of a name; ``auto`` is the accelerator if there is one, else the CPU.

    Raises:
        ValueError: this machine has no such device.
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
        raise ValueError(
            f"device {str(name)!r} is not in this machine, which has {count} of type {device.type}: use auto"
        )
    return device


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Compute in a precision, as Lightning's Trainer does for the same name."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()
