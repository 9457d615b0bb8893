"""Number formats of PTX as NumPy arrays of bits: decode to floats, encode with rounding."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


class UnsupportedError(Exception):
    """What the emulator does not do. Not one of the RuntimeErrors, for which another tile would be tried."""


UNSIGNED = {1: np.dtype(bool), 8: np.dtype("u1"), 16: np.dtype("u2"), 32: np.dtype("u4"), 64: np.dtype("u8")}
"""Bits of a register by its width."""


@cache
def width_of(kind: str) -> int:
    """Return bits of a type, `s32` or `bf16x2`."""
    if kind == "pred":
        return 1
    number, _, pair = kind.lstrip("abcdefghijklmnopqrstuvwxyz").partition("x")
    return int(number) * (2 if pair else 1)


@cache
def integer_dtype(kind: str) -> np.dtype[np.generic]:
    """Return the dtype of an integer type; bits are unsigned."""
    return np.dtype(f"{'i' if kind[0] == 's' else 'u'}{width_of(kind) // 8}")


def is_float(kind: str) -> bool:
    """Return whether a type is of floats."""
    return kind.startswith(("f", "bf", "tf"))


def decode(bits: Array, kind: str) -> Array:
    """Return floats of a register's bits; of pairs, twice as many."""
    if kind == "f32":
        return bits.view(np.float32)
    if kind == "f64":
        return bits.view(np.float64)
    if kind.endswith("x2"):
        return decode(bits.view(np.uint16), kind[:-2])
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    raise UnsupportedError(f"PTX type {kind} is not emulated")


def encode(values: Array, kind: str) -> Array:
    """Round floats to the nearest, ties to even; return bits."""
    if kind == "f32":
        return values.astype(np.float32, copy=False).view(np.uint32)
    if kind == "f64":
        return values.astype(np.float64, copy=False).view(np.uint64)
    if kind.endswith("x2"):
        return encode(values, kind[:-2]).view(np.uint32)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    if kind == "bf16":
        single = values.astype(np.float32, copy=False)
        bits = single.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(single), np.uint32(0x7FFF), rounded).astype(np.uint16)
    raise UnsupportedError(f"PTX type {kind} is not emulated")


def flush(values: Array) -> Array:
    """Replace subnormal numbers of float32 by zeros."""
    return np.where(np.abs(values) < np.float32(2**-126), np.copysign(np.float32(0), values), values)


def round_tf32(bits: Array) -> Array:
    """Round float32 to tf32, ties away from zero; NaN and infinity stay."""
    special = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    return np.where(special, bits, (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000))
