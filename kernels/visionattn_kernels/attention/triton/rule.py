"""The window rule inside kernels, by arithmetic: dilation groups, intervals of keys, and intervals of queries.

It is the rule of `AxisWindow`, for one axis. Kernels read no tables, so a first call may happen anywhere, also inside
the capture of a CUDA graph. Letters as there: Q queries and L keys on an axis.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import triton
import triton.language as tl

from visionattn_kernels.window import AxisWindow

SHIFT, MASK, ZERO, CAUSAL = (tl.constexpr(i) for i in range(4))
"""Kinds of rule: what happens at the border, or that no later key is seen."""


class Axis(NamedTuple):
    """The window rule of one axis, see `AxisWindow`, and how its dilation groups lie.

    Attributes:
        dilation: Distance of neighbouring keys of a group.
        query_stride: Distance of neighbouring queries, in keys.
        step: Distance of neighbouring queries of one group, in queries; also the number of groups with queries.
        spacing: Distance of neighbouring queries of one group, in keys of the group.
        inverse: Inverse of `spacing` modulo `step`.
        kernel_size: Keys of an interior window; relative tables have `2 kernel_size - 1` entries.
        stride: Queries that share one window.
        kind: One of the four above.
    """

    dilation: int
    query_stride: int
    step: int
    spacing: int
    inverse: int
    kernel_size: tl.constexpr
    stride: tl.constexpr
    kind: tl.constexpr

    def num_query_tiles(self, num_queries: int, size: int) -> int:
        """Return the number of tiles of `size` queries; tiles of a shorter group may be empty."""
        return self.step * -(-num_queries // (self.step * size))

    def num_key_tiles(self, num_keys: int, size: int) -> int:
        """Return the number of tiles of `size` keys; tiles of a shorter group may be empty."""
        return self.dilation * -(-num_keys // (self.dilation * size))


class Group(NamedTuple):
    """A dilation group: position of its first query, the own index of that query, and so on."""

    first_query: Any
    first_index: Any
    num_queries: Any
    first_key: Any
    num_keys: Any


class Span(NamedTuple):
    """Span of a tile on one axis, counted in its dilation group: met in part from lo to hi, wholly inside `every`."""

    lo: Any
    hi: Any
    every_lo: Any
    every_hi: Any


class Strip(NamedTuple):
    """A tile on one axis: its group, the number of its first member in that, how many they are, and what they meet."""

    group: Group
    first: Any
    count: Any
    span: Span


@lru_cache(maxsize=1024)
def as_axis(axis: AxisWindow) -> Axis:
    """Return the rule of an axis for kernels."""
    common = math.gcd(axis.dilation, axis.query_stride)
    step, spacing = axis.dilation // common, axis.query_stride // common
    inverse = pow(spacing, -1, step) if step > 1 else 1
    kind = CAUSAL if axis.is_causal else {"shift": SHIFT, "mask": MASK, "zero": ZERO}[axis.boundary]
    flags = tl.constexpr(axis.kernel_size), tl.constexpr(axis.stride), kind
    return Axis(axis.dilation, axis.query_stride, step, spacing, inverse, *flags)


@triton.jit
def interval(axis: Axis, index: tl.tensor, length: tl.tensor) -> tl.tuple:
    """Return the half-open interval of keys that a query sees in its group of `length` keys; see `AxisWindow`."""
    block = index // axis.stride * axis.stride
    if axis.kind == CAUSAL:
        lead = tl.minimum(block + axis.stride - 1, length - 1)
        start, stop = tl.maximum(lead - axis.kernel_size + 1, 0), index + 1
    else:
        start = block + (axis.stride // 2 - axis.kernel_size // 2)
        if axis.kind == SHIFT:
            size = tl.minimum(length, axis.kernel_size)
            start = tl.minimum(tl.maximum(start, 0), length - size)
            stop = start + size
        elif axis.kind == MASK:
            start, stop = tl.maximum(start, 0), tl.minimum(start + axis.kernel_size, length)
        else:
            stop = start + axis.kernel_size
    return start, stop


@triton.jit
def seen_by(axis: Axis, key: tl.tensor, length: tl.tensor) -> tl.tuple:
    """Invert the rule: return the least and the largest index of queries that see a key of a group."""
    if axis.kind == CAUSAL:
        first = key
        last = (key + axis.kernel_size - axis.stride) // axis.stride * axis.stride + axis.stride - 1
        last = tl.where(key + axis.kernel_size >= length, 1 << 30, last)
    else:
        lead: tl.constexpr = axis.stride // 2 - axis.kernel_size // 2
        size = axis.kernel_size
        if axis.kind == SHIFT:
            size = tl.minimum(length, axis.kernel_size)
        first = tl.cdiv(tl.maximum(key - size + 1 - lead, 0), axis.stride) * axis.stride
        last = (key - lead) // axis.stride * axis.stride + axis.stride - 1
        if axis.kind == SHIFT:
            first = tl.where(key < size, 0, first)
            last = tl.where(key >= length - size, 1 << 30, last)
    return first, last


@triton.jit
def query_strip(axis: Axis, num_queries: tl.tensor, num_keys: tl.tensor, tile: tl.tensor, SIZE: tl.constexpr) -> Strip:
    """Return a tile of `SIZE` queries of an axis, and the keys that they see."""
    query = tile % axis.step
    start = query * axis.query_stride
    key = start % axis.dilation
    count = tl.cdiv(num_queries - query, axis.step)
    group = Group(query, start // axis.dilation, count, key, tl.cdiv(num_keys - key, axis.dilation))
    first = tile // axis.step * SIZE
    count = tl.minimum(count - first, SIZE)
    index = group.first_index + axis.spacing * first
    lo, every_hi = interval(axis, index, group.num_keys)
    every_lo, hi = interval(axis, index + axis.spacing * (count - 1), group.num_keys)
    whole = count == SIZE
    return Strip(
        group, first, count, Span(lo, tl.where(count > 0, hi, lo), every_lo, tl.where(whole, every_hi, every_lo))
    )


@triton.jit
def _span(
    lo: tl.tensor, hi: tl.tensor, every_lo: tl.tensor, every_hi: tl.tensor, count: tl.tensor, SIZE: tl.constexpr
) -> Span:
    """Return the span of `count` members: an empty tile meets nothing, one that is not full has masked pairs."""
    return Span(lo, tl.where(count > 0, hi, lo), every_lo, tl.where(count == SIZE, every_hi, every_lo))


@triton.jit
def key_strip(axis: Axis, num_queries: tl.tensor, num_keys: tl.tensor, tile: tl.tensor, SIZE: tl.constexpr) -> Strip:
    """Return a tile of `SIZE` keys of an axis, and the queries that see them."""
    key = tile % axis.dilation
    common = axis.dilation // axis.step
    query = key // common * axis.inverse % axis.step
    index = query * axis.query_stride // axis.dilation
    length = tl.cdiv(num_keys - key, axis.dilation)
    count = tl.where(key % common == 0, tl.cdiv(num_queries - query, axis.step), 0)
    group = Group(query, index, count, key, length)
    first = tile // axis.dilation * SIZE
    present = tl.minimum(length - first, SIZE)
    lo, every_hi = interval_of_queries(axis, group, first)
    every_lo, hi = interval_of_queries(axis, group, first + present - 1)
    whole = present == SIZE
    return Strip(
        group, first, present, Span(lo, tl.where(present > 0, hi, lo), every_lo, tl.where(whole, every_hi, every_lo))
    )


@triton.jit
def interval_of_queries(axis: Axis, group: Group, key: tl.tensor) -> tl.tuple:
    """Return the half-open interval of queries that see a key, counted in its group."""
    least, largest = seen_by(axis, key, group.num_keys)
    start = tl.cdiv(tl.maximum(least - group.first_index, 0), axis.spacing)
    stop = tl.where(largest < group.first_index, 0, (largest - group.first_index) // axis.spacing + 1)
    return start, tl.minimum(stop, group.num_queries)


@triton.jit
def partly(span: Span, first: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    """Return whether some pair is masked between a tile and `SIZE` keys or queries from `first`."""
    return (first < span.every_lo) | (first + SIZE > span.every_hi)


@triton.jit
def turns(span: Span, SIZE: tl.constexpr) -> tl.tensor:
    """Return how many rectangles of `SIZE` cover a span."""
    return tl.cdiv(tl.maximum(span.hi - span.lo, 0), SIZE)
