"""Precision of float32 products in the kernels. No triton."""

from __future__ import annotations

import os

import torch

VARIABLE = "VISIONATTN_FP32_PRECISION"

PRECISIONS = ("ieee", "tf32", "tf32x3")
"""Values of the variable: exact products; inputs rounded to 10 bits; and each input as a sum of two such numbers."""

XF32 = ("gfx942",)
"""Architectures of ROCm that have `tf32`, to Triton. None has `tf32x3`."""


def product_precision(device: torch.device, dtype: torch.dtype) -> str:
    """Return `input_precision` of the kernels' products, or "interpreted" on a CPU.

    The environment variable `VISIONATTN_FP32_PRECISION` decides, or else `torch.backends.cuda.matmul.fp32_precision`,
    which knows no `tf32x3`. Both allow a precision: a device that does not have it computes in `ieee`.

    Raises:
        ValueError: The variable has another value than one of `PRECISIONS`.
    """
    if device.type == "cpu":
        return "interpreted"
    if dtype != torch.float32:
        return "ieee"
    allowed = os.environ.get(VARIABLE)
    if allowed and allowed not in PRECISIONS:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(PRECISIONS)}; got {allowed!r}")
    allowed = allowed or torch.backends.cuda.matmul.fp32_precision
    return allowed if allowed in PRECISIONS and _has(device, allowed) else "ieee"


def _has(device: torch.device, precision: str) -> bool:
    if precision == "ieee" or torch.version.hip is None:
        return True
    return precision == "tf32" and torch.cuda.get_device_properties(device).gcnArchName.split(":")[0] in XF32
