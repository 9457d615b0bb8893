"""Keys that a query sees: the window rule of every backend. Pure integers, no attention.

One rule covers neighborhood attention (dilated, strided, causal), HaloNet's blocked attention and plain window
attention: on each axis, a query is mapped to an interval of keys, and a 2-D window is the product of its two axes.
The rule is that of generalized neighborhood attention (Hassani et al., arXiv 2504.16922), with a choice of what
happens at the border.

Shape suffixes: L keys on an axis, Q queries on an axis, P key positions with a margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from visionattn_kernels.tracing import outside_modes

IntOrPair = int | tuple[int, int]
BoolOrPair = bool | tuple[bool, bool]
Boundary = Literal["shift", "mask", "zero"]
BOUNDARIES: tuple[str, ...] = get_args(Boundary)

MAX_KEYS = 1 << 22
"""Largest window, in keys: larger tables would fill the memory before any error."""


@dataclass(frozen=True)
class AxisWindow:
    """The window rule on one axis.

    Attributes:
        kernel_size: Keys that an interior query sees.
        stride: Queries per group that share one window; 1 is a sliding window, `kernel_size` a blocked one.
        dilation: Distance between neighbouring keys of a window.
        is_causal: Whether a query sees no later key.
        boundary: What an interval that reaches over the border does: move inward ("shift"), lose those keys ("mask"),
            or see zero vectors there ("zero").
        query_stride: Distance between neighbouring queries, in key positions.
    """

    kernel_size: int
    stride: int = 1
    dilation: int = 1
    is_causal: bool = False
    boundary: Boundary = "shift"
    query_stride: int = 1

    def num_queries(self, length: int) -> int:
        """Return the number of queries on an axis of `length` keys."""
        return -(-length // self.query_stride)

    def interval(self, index: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Return the half-open interval of keys that a query sees inside its dilation group.

        Args:
            index: Position of each query inside its dilation group.
            length: Number of keys in that group, same shape.

        Returns:
            `start, stop`. Only with boundary "zero" do they reach outside [0, length).
        """
        block = index // self.stride * self.stride
        if self.is_causal:
            lead = torch.minimum(block + self.stride - 1, length - 1)
            return (lead - self.kernel_size + 1).clamp(min=0), index + 1
        # The published rule also bounds the leader of a block by length - 1. Under "shift" that changes nothing; under
        # "mask" and "zero" it would move the window of a ragged last block away from where a padded HaloNet has it.
        start = block + self.stride // 2 - self.kernel_size // 2
        if self.boundary == "shift":
            size = length.clamp(max=self.kernel_size)
            start = torch.minimum(start.clamp(min=0), length - size)
            return start, start + size
        stop = start + self.kernel_size
        if self.boundary == "mask":
            return start.clamp(min=0), torch.minimum(stop, length)
        return start, stop

    def groups(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return dilation group, position inside it, and length of that group for each query: three `[Q]` tensors."""
        position = torch.arange(self.num_queries(length), device="cpu") * self.query_stride
        group = position % self.dilation
        return group, position // self.dilation, (length - group + self.dilation - 1) // self.dilation

    def margin(self, length: int) -> int:
        """Return how many positions beyond either border a query may see: none unless boundary is "zero"."""
        if self.boundary != "zero" or self.is_causal:
            return 0
        return (self.kernel_size + self.stride) * self.dilation

    def visible(self, length: int, queries: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Write the rule out.

        Args:
            length: Number of keys on the axis.
            queries: `[Q]` the queries of interest, on the device of the result; all, on the CPU, if None.

        Returns:
            `visible [Q, P]`, whether query Q takes part with the key at position P - margin, and `offset [Q, P]`, the
            entry `(key - query) / dilation + kernel_size - 1` of a relative table (meaningful where visible).
        """
        tables = self.groups(length)
        if queries is not None:
            tables = tuple(x.to(queries.device)[queries] for x in tables)  # type: ignore[assignment]
        group, index, group_length = (x[:, None] for x in tables)
        start, stop = self.interval(index, group_length)
        margin = self.margin(length)
        distance = torch.arange(-margin, length + margin, device=group.device) - group
        key = distance.div(self.dilation, rounding_mode="floor")
        visible = (distance % self.dilation == 0) & (key >= start) & (key < stop)
        return visible, (key - index + self.kernel_size - 1).clamp(0, 2 * self.kernel_size - 2)


@dataclass(frozen=True)
class Window:
    """The window rule on a map of height x width; each field holds one value per axis, see `AxisWindow`."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    is_causal: tuple[bool, bool] = (False, False)
    boundary: Boundary = "shift"
    query_stride: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        for name in ("kernel_size", "stride", "dilation", "query_stride"):
            value = getattr(self, name)
            if not (_is_pair(value) and all(type(x) is int and x >= 1 for x in value)):
                raise ValueError(f"{name} must be an int >= 1, or one per axis; got {value!r}")
        if not (_is_pair(self.is_causal) and all(isinstance(x, bool) for x in self.is_causal)):
            raise ValueError(f"is_causal must be a bool, or one per axis; got {self.is_causal!r}")
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}; got {self.boundary!r}")
        if self.kernel_size[0] * self.kernel_size[1] > MAX_KEYS:
            raise ValueError(
                f"kernel_size must be at most {MAX_KEYS} keys per window, rows times columns; got {self.kernel_size}"
            )
        if any(s > k for s, k in zip(self.stride, self.kernel_size, strict=True)):
            raise ValueError(
                f"stride must be <= kernel_size on each axis, or some keys would be seen by no query; "
                f"got stride {self.stride} with kernel_size {self.kernel_size}"
            )

    @classmethod
    def neighborhood(
        cls,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        dilation: IntOrPair = 1,
        is_causal: BoolOrPair = False,
        boundary: Boundary = "shift",
        query_stride: IntOrPair = 1,
    ) -> Window:
        """Return a window around each query; see `AxisWindow` for the arguments, which are given once or per axis.

        Raises:
            ValueError: An argument is out of bounds; the message names it.
        """
        return cls(_pair(kernel_size), _pair(stride), _pair(dilation), _pair(is_causal), boundary, _pair(query_stride))

    create = neighborhood
    """The name in 0.1.0."""

    @classmethod
    def sequence(
        cls,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        is_causal: bool = False,
        boundary: Boundary = "shift",
    ) -> Window:
        """Return the neighborhood window of a sequence, which is a map of one row."""
        return cls.neighborhood((1, kernel_size), (1, stride), (1, dilation), (False, is_causal), boundary)

    @classmethod
    def halo(
        cls,
        block_size: IntOrPair,
        halo_size: IntOrPair,
        boundary: Literal["mask", "zero"] = "mask",
        query_stride: IntOrPair = 1,
    ) -> Window:
        """Return HaloNet's window (arXiv 2103.12731): a block of queries sees the keys of the block and its halo.

        Maps of any size fit: the last block of an axis may be ragged.

        Args:
            block_size: Edge of a block, in key positions.
            halo_size: Keys seen on each side of the block.
            boundary: What lies beyond the map: nothing ("mask"), or zero vectors that take part in the softmax ("zero",
                as in networks trained with unmasked zero padding).
            query_stride: Distance of neighbouring queries, in key positions: 2 for HaloNet's downsampling attention.

        Raises:
            ValueError: An argument is out of bounds; the message names it.
        """
        block, halo = _check_sizes("block_size", block_size, 1), _check_sizes("halo_size", halo_size, 0)
        if boundary not in ("mask", "zero"):
            raise ValueError(f"boundary must be 'mask' or 'zero' in halo attention; got {boundary!r}")
        kernel = (block[0] + 2 * halo[0], block[1] + 2 * halo[1])
        return cls.neighborhood(kernel, block, boundary=boundary, query_stride=query_stride)

    @classmethod
    def blocks(cls, window_size: IntOrPair) -> Window:
        """Return windows that do not overlap, as Swin's (arXiv 2103.14030); the last of an axis may be ragged."""
        return cls.halo(_check_sizes("window_size", window_size, 1), 0)

    def fit(self, size: tuple[int, int]) -> Window:
        """Return the same rule with no more dilation groups than a key map of `size` has keys on an axis.

        With keys further apart than the map is long, each query sees itself alone, however large the dilation.
        """
        if all(d <= n for d, n in zip(self.dilation, size, strict=True)):
            return self
        rows, columns = (min(d, n) for d, n in zip(self.dilation, size, strict=True))
        return replace(self, dilation=(rows, columns))

    @property
    def axes(self) -> tuple[AxisWindow, AxisWindow]:
        """The rules of rows and columns."""
        rows, columns = (
            AxisWindow(k, s, d, c, self.boundary, r)
            for k, s, d, c, r in zip(
                self.kernel_size, self.stride, self.dilation, self.is_causal, self.query_stride, strict=True
            )
        )
        return rows, columns

    def to_ints(self) -> list[int]:
        """Return all fields as integers, for operator schemas; `from_ints` reads them."""
        pairs = (self.kernel_size, self.stride, self.dilation, self.is_causal, self.query_stride)
        return [int(x) for pair in pairs for x in pair] + [BOUNDARIES.index(self.boundary)]

    @classmethod
    def from_ints(cls, ints: Sequence[int]) -> Window:
        """Return the window of `to_ints`."""
        kernel, stride, dilation, causal, query_stride = ((ints[i], ints[i + 1]) for i in range(0, 10, 2))
        is_causal = (bool(causal[0]), bool(causal[1]))
        return cls(kernel, stride, dilation, is_causal, get_args(Boundary)[ints[10]], query_stride)

    def num_queries(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the query map over a key map of `size`."""
        rows, columns = self.axes
        return rows.num_queries(size[0]), columns.num_queries(size[1])

    def count_pairs(self, size: tuple[int, int]) -> int:
        """Return the number of query-key pairs that one head of one image computes on a key map of `size`."""
        rows, columns = (_count_axis_pairs(axis, length) for axis, length in zip(self.axes, size, strict=True))
        return rows * columns


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _check_sizes(name: str, value: Any, least: int) -> tuple[int, int]:
    pair = _pair(value)
    if len(pair) != 2 or not all(type(x) is int and x >= least for x in pair):
        raise ValueError(f"{name} must be an int >= {least}, or one per axis; got {value!r}")
    return pair[0], pair[1]


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


@lru_cache(maxsize=1024)
@outside_modes
def _count_axis_pairs(axis: AxisWindow, length: int) -> int:
    _, index, group_length = axis.groups(length)
    start, stop = axis.interval(index, group_length)
    return int((stop - start).sum())
