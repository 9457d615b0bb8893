"""Heads-last maps as the kernels read and write them: strides, alignment, and the width of offsets."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

MAX_OFFSET = (1 << 31) - 1
"""Largest offset of a number inside one image and head that 32 bits hold."""


class Map(NamedTuple):
    """A heads-last tensor for a kernel. Its channels are neighbours in memory and padded to a block.

    Attributes:
        data: The tensor.
        batch, row, column, head: Strides, in units.
        unit: Largest power of two, up to 16, that divides all strides: the compiler learns how numbers are aligned.
        wide: Whether offsets inside one image and head need 64 bits.
        dim: Channels.
        block: Channels in a program, a power of two.
    """

    data: Any
    batch: int
    row: int
    column: int
    head: int
    unit: tl.constexpr
    wide: tl.constexpr
    dim: tl.constexpr
    block: tl.constexpr


def as_map(x: Tensor) -> Map:
    """Return `[B, H, W, heads, c]` for a kernel; copied only if channels are not neighbours."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return Map(x, *_lay_out(x.shape[1:], x.stride()))


@lru_cache(maxsize=4096)
def _lay_out(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[Any, ...]:
    """Return all of a map but the tensor, from its size without the batch, and its strides."""
    (height, width, _, dim), (batch, row, column, head, _) = shape, strides
    unit = math.gcd(16, batch, row, column, head)
    wide = (height - 1) * row + (width - 1) * column + dim > MAX_OFFSET
    flags = map(tl.constexpr, (unit, wide, dim, max(16, triton.next_power_of_2(dim))))
    return (batch // unit, row // unit, column // unit, head // unit, *flags)


def as_tokens(x: Tensor) -> Map:
    """Return `[B, tokens, heads, c]` as a map of one column, whichever column is asked for."""
    return as_map(x[:, :, None])._replace(column=0)


@triton.jit
def address(x: Map, batch: tl.tensor, head: tl.tensor, row: tl.tensor, column: tl.tensor) -> tl.tensor:
    """Return where the channels of these positions begin."""
    start = x.data + (tl.cast(batch, tl.int64) * x.batch + tl.cast(head, tl.int64) * x.head) * x.unit
    if x.wide:
        offset = tl.cast(row, tl.int64) * x.row + tl.cast(column, tl.int64) * x.column
    else:
        offset = row * x.row + column * x.column
    return start + offset * x.unit


@triton.jit
def _address_vectors(
    x: Map, batch: tl.tensor, head: tl.tensor, row: tl.tensor, column: tl.tensor, inside: tl.tensor
) -> tl.tuple:
    channel = tl.arange(0, x.block)
    mask = inside[:, None]
    if x.dim != x.block:
        mask = mask & (channel < x.dim)[None, :]
    return address(x, batch, head, row, column)[:, None] + channel[None, :], mask


@triton.jit
def load_vectors(
    x: Map, batch: tl.tensor, head: tl.tensor, row: tl.tensor, column: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """Load vectors at positions of a map, `[positions, block]`; zeros beyond their channels and where not inside."""
    pointer, mask = _address_vectors(x, batch, head, row, column, inside)
    return tl.load(pointer, mask=mask, other=0.0)


@triton.jit
def store_vectors(
    x: Map,
    batch: tl.tensor,
    head: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    value: tl.tensor,
) -> None:
    """Store vectors at positions of a map; see `load_vectors`."""
    pointer, mask = _address_vectors(x, batch, head, row, column, inside)
    tl.store(pointer, value.to(x.data.dtype.element_ty), mask=mask)


F32: tl.constexpr = tl.constexpr("{ .reg .pred p; setp.lt.u32 p, $2, $3; mov.b32 $0, $4; @p ld.global.f32 $0, [$1]; }")
F16: tl.constexpr = tl.constexpr(
    "{ .reg .pred p; .reg .b16 x; setp.lt.u32 p, $2, $3; cvt.rn.f16.f32 x, $4; "
    "@p ld.global.b16 x, [$1]; cvt.f32.f16 $0, x; }"
)
BF16: tl.constexpr = tl.constexpr(
    "{ .reg .pred p; .reg .b16 x, zero; setp.lt.u32 p, $2, $3; mov.b32 {zero, x}, $4; mov.b16 zero, 0; "
    "@p ld.global.b16 x, [$1]; mov.b32 $0, {zero, x}; }"
)


@triton.jit
def load_scattered(
    pointer: tl.tensor, number: tl.tensor, limit: tl.tensor, other: tl.constexpr, BY_THREAD: tl.constexpr
) -> tl.tensor:
    """Load single numbers in float32 where `number`, unsigned, is below a limit.

    With BY_THREAD, by an instruction of NVIDIA's, each thread loads what it needs itself. Triton gives loads a layout
    of their own: biases would be computed and loaded in that, and carried through shared memory to that of the scores.
    """
    if BY_THREAD:
        KIND: tl.constexpr = pointer.dtype.element_ty
        ASM: tl.constexpr = F32 if tl.float32 == KIND else F16 if tl.float16 == KIND else BF16
        given = [pointer.to(tl.int64), number.to(tl.uint32), limit, tl.full((1, 1), other, tl.float32)]
        loaded = tl.inline_asm_elementwise(ASM, "=f,l,r,r,f", given, dtype=tl.float32, is_pure=True, pack=1)
    else:
        loaded = tl.load(pointer, mask=number.to(tl.uint32) < limit, other=other).to(tl.float32)
    return loaded
