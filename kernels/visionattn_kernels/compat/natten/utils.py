"""The helpers of `natten.utils` that models import."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import torch

log = SimpleNamespace(get_logger=logging.getLogger)
"""Stands for `natten.utils.log`."""


def check_all_args(
    na_dim: int, kernel_size: Any, dilation: Any, is_causal: Any
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """Return kernel size, dilation and causality as tuples of `na_dim` values.

    Args:
        na_dim: Number of axes.
        kernel_size: An int, or one per axis.
        dilation: An int, or one per axis; None for 1.
        is_causal: A bool, or one per axis; None for False.

    Raises:
        ValueError: An argument has another type, or another number of values.
    """
    return (
        _per_axis("kernel_size", kernel_size, na_dim, int),
        _per_axis("dilation", 1 if dilation is None else dilation, na_dim, int),
        _per_axis("is_causal", False if is_causal is None else is_causal, na_dim, bool),
    )


def get_num_na_weights(kernel_size: tuple[int, ...]) -> int:
    """Return the number of keys in a window."""
    return math.prod(kernel_size)


def get_device_cc(device_index: int | None = None) -> int:
    """Return the compute capability of a CUDA device, 80 for 8.0."""
    major, minor = torch.cuda.get_device_capability(device_index)
    return major * 10 + minor


def _per_axis(name: str, value: Any, axes: int, kind: type) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes or not all(type(x) is kind for x in values):
        raise ValueError(f"{name} must be one {kind.__name__}, or {axes} of them, one per axis; got {value!r}")
    return values
