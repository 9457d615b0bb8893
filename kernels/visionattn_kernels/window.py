"""Which keys a query sees: the geometry that every backend shares. Pure integers, no attention.

One rule covers neighborhood attention (dilated, strided, causal), HaloNet's blocked attention and plain window
attention: on each axis, a query is mapped to an interval of keys, and a 2-D window is the product of its two axes.
The rule is that of generalized neighborhood attention (Hassani et al., arXiv 2504.16922), with a choice of what
happens at the border.

Shape suffixes: L keys on an axis, Q queries on an axis, P key positions with a margin, T tiles, q queries of a tile,
k keys of a tile, C distinct tile patterns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

Boundary = Literal["shift", "mask", "zero"]
BOUNDARIES: tuple[str, ...] = get_args(Boundary)

MAX_KEYS = 1 << 22
"""Keys of a window, at most: larger tables and panels would fill the memory before anything is said."""

MAX_CACHED_PLANS = 64
"""How many tile plans are kept; a plan takes about 16 bytes per query and key slot (0.4 MB at 56x56, kernel 7)."""

Build = TypeVar("Build", bound=Callable[..., Any])


def outside_modes(build: Build) -> Build:
    """Makes tables, which a cache keeps, fit for any later use wherever the first call was.

    Tensors made in inference mode could take part in no gradient, and those made under fake tensors or a trace hold no
    numbers. A function that names device and dtype of its tables depends on no default either.
    """

    @wraps(build)
    def run(*args: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():  # which traces through, and makes them constants itself
            return build(*args)
        with _disable_current_modes(), torch.inference_mode(False):
            return build(*args)

    return run  # type: ignore[return-value]


@dataclass(frozen=True)
class AxisWindow:
    """The window rule on one axis.

    Attributes:
        kernel_size: Keys that an interior query sees.
        stride: Queries per group that share one window; 1 is a sliding window, `kernel_size` a blocked one.
        dilation: Distance between neighbouring keys of a window.
        is_causal: Whether a query sees no key behind itself.
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
        """Queries on an axis of `length` keys."""
        return -(-length // self.query_stride)

    def interval(self, index: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """The half-open interval of keys that a query sees inside its dilation group.

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
        """Dilation group, position inside it, and that group's length, for each query: three `[Q]` tensors."""
        position = torch.arange(self.num_queries(length), device="cpu") * self.query_stride
        group = position % self.dilation
        return group, position // self.dilation, (length - group + self.dilation - 1) // self.dilation

    def margin(self, length: int) -> int:
        """Positions beyond either border that a query may see (as zero vectors): none unless boundary is "zero"."""
        if self.boundary != "zero" or self.is_causal:
            return 0
        return (self.kernel_size + self.stride) * self.dilation

    def visible(self, length: int) -> tuple[Tensor, Tensor]:
        """The rule written out.

        Returns:
            `visible [Q, P]`, whether query Q takes part with the key at position P - margin, and `offset [Q, P]`, the
            entry `(key - query) / dilation + kernel_size - 1` of a relative table (meaningful where visible).
        """
        group, index, group_length = (x[:, None] for x in self.groups(length))
        start, stop = self.interval(index, group_length)
        margin = self.margin(length)
        distance = torch.arange(-margin, length + margin, device="cpu") - group
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
    def create(
        cls,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        is_causal: bool | tuple[bool, bool] = False,
        boundary: Boundary = "shift",
        query_stride: int | tuple[int, int] = 1,
    ) -> Window:
        """A window from values that are given once or per axis. Raises ValueError with the argument's name."""
        return cls(_pair(kernel_size), _pair(stride), _pair(dilation), _pair(is_causal), boundary, _pair(query_stride))

    def fit(self, size: tuple[int, int]) -> Window:
        """The same rule on a key map of `size`, with no more dilation groups than there are keys on an axis.

        Keys further apart than the map is long leave each query alone with itself, however far.
        """
        if all(d <= n for d, n in zip(self.dilation, size, strict=True)):
            return self
        rows, columns = (min(d, n) for d, n in zip(self.dilation, size, strict=True))
        return replace(self, dilation=(rows, columns))

    @property
    def axes(self) -> tuple[AxisWindow, AxisWindow]:
        """The rule of the rows and that of the columns."""
        rows, columns = (
            AxisWindow(k, s, d, c, self.boundary, r)
            for k, s, d, c, r in zip(
                self.kernel_size, self.stride, self.dilation, self.is_causal, self.query_stride, strict=True
            )
        )
        return rows, columns

    def to_ints(self) -> list[int]:
        """All fields as integers, for operator schemas; `from_ints` reads them back."""
        pairs = (self.kernel_size, self.stride, self.dilation, self.is_causal, self.query_stride)
        return [int(x) for pair in pairs for x in pair] + [BOUNDARIES.index(self.boundary)]

    @classmethod
    def from_ints(cls, ints: Sequence[int]) -> Window:
        """The inverse of `to_ints`."""
        kernel, stride, dilation, causal, query_stride = ((ints[i], ints[i + 1]) for i in range(0, 10, 2))
        is_causal = (bool(causal[0]), bool(causal[1]))
        return cls(kernel, stride, dilation, is_causal, get_args(Boundary)[ints[10]], query_stride)

    def num_queries(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the query map over a key map of `size`."""
        rows, columns = self.axes
        return rows.num_queries(size[0]), columns.num_queries(size[1])

    def count_pairs(self, size: tuple[int, int]) -> int:
        """Query-key pairs that take part on a key map of `size`: what one head of one image must compute."""
        rows, columns = (_count_axis_pairs(axis, length) for axis, length in zip(self.axes, size, strict=True))
        return rows * columns


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


@lru_cache(maxsize=1024)
@outside_modes
def _count_axis_pairs(axis: AxisWindow, length: int) -> int:
    _, index, group_length = axis.groups(length)
    start, stop = axis.interval(index, group_length)
    return int((stop - start).sum())


@dataclass(frozen=True)
class AxisTables:
    """The rule of one axis written out as small integer tables, for kernels that walk dilation groups.

    A dilation group g holds the keys `g + dilation * m`, m in [0, keys[g]), and the queries
    `first_query[g] + query_step * n`, n in [0, queries[g]). Queries and keys below are counted inside their group.

    Attributes:
        query_step: Distance of neighbouring queries of one group.
        keys, queries, first_query: `[dilation]` see above.
        index: `[Q]` the query's own position, as a key of its group: table entries are `key - index + kernel_size - 1`.
        start, stop: `[Q]` the interval of keys that a query sees; never decreasing inside a group.
        query_start, query_stop: `[L]` the interval of queries that see a key, empty where none does: the rule inverted.
    """

    query_step: int
    keys: Tensor
    queries: Tensor
    first_query: Tensor
    index: Tensor
    start: Tensor
    stop: Tensor
    query_start: Tensor
    query_stop: Tensor


@lru_cache(maxsize=MAX_CACHED_PLANS)
@outside_modes
def tabulate_axis(axis: AxisWindow, length: int, device: torch.device) -> AxisTables:
    """The tables of an axis of `length` keys, int32 on `device`; cached."""
    group, index, group_length = axis.groups(length)
    start, stop = axis.interval(index, group_length)
    every_group = torch.arange(axis.dilation, device="cpu")
    member = group == every_group[:, None]  # [d, Q]
    # Starts and stops never decrease inside a group, so the queries that see a key are neighbours.
    query_start, query_stop = torch.empty(2, length, dtype=torch.long, device="cpu")
    for g in range(min(axis.dilation, length)):
        keys = torch.arange((length - g + axis.dilation - 1) // axis.dilation, device="cpu")
        query_start[g :: axis.dilation] = torch.searchsorted(stop[member[g]], keys, right=True)
        query_stop[g :: axis.dilation] = torch.searchsorted(start[member[g]], keys, right=True)
    tables = {
        "keys": (length - every_group + axis.dilation - 1) // axis.dilation,
        "queries": member.sum(1),
        "first_query": member.long().argmax(1),
        "index": index,
        "start": start,
        "stop": stop,
        "query_start": query_start,
        "query_stop": query_stop,
    }
    return AxisTables(
        axis.dilation // math.gcd(axis.dilation, axis.query_stride),
        **{name: x.to(device, torch.int32) for name, x in tables.items()},
    )


@dataclass(frozen=True)
class AxisTiles:
    """Tiles of queries of one dilation group and one axis, each beside the keys that any of them sees.

    Attributes:
        query: `[T, q]` queries of each tile; a short tile repeats its last one.
        slot: `[Q]` where in `query.flatten()` each query stands.
        key: `[T, k]` key positions; outside the map where `inside` is False, clamped to it.
        inside: `[T, k]` whether the slot holds a key of the map.
        pattern: `[T]` which of the C patterns below a tile has.
        visible: `[C, q, k]` whether the query takes part with the key slot.
        offset: `[C, q, k]` entry of a relative table, see `AxisWindow.visible`.
    """

    query: Tensor
    slot: Tensor
    key: Tensor
    inside: Tensor
    pattern: Tensor
    visible: Tensor
    offset: Tensor


def tile_axis(axis: AxisWindow, length: int, tile: int) -> AxisTiles:
    """Cuts the queries of an axis into tiles of `tile` neighbours."""
    group, index, group_length = axis.groups(length)
    start, stop = axis.interval(index, group_length)
    order = torch.argsort(group, stable=True)
    tiles = [part for g in range(axis.dilation) for part in order[group[order] == g].split(tile) if len(part)]
    query = torch.stack([torch.cat([part, part[-1:].expand(tile - len(part))]) for part in tiles])
    slot = torch.empty_like(group)
    slot[query.flatten().flip(0)] = torch.arange(query.numel(), device="cpu").flip(0)

    first, last = start[query].amin(1), stop[query].amax(1)
    size = int((last - first).max())
    group, group_length = group[query[:, 0]], group_length[query[:, 0]]
    # A tile that sees fewer keys than the others takes further ones, which no query sees, from inside the map.
    if not axis.margin(length):
        first = torch.minimum(first, (group_length - size).clamp(min=0))
    member = first[:, None] + torch.arange(size, device="cpu")
    inside = (member >= 0) & (member < group_length[:, None])
    key = group[:, None] + axis.dilation * member.clamp(min=0).minimum(group_length[:, None] - 1)

    member = member[:, None]
    visible = (member >= start[query][..., None]) & (member < stop[query][..., None])
    offset = (member - index[query][..., None] + axis.kernel_size - 1).clamp(0, 2 * axis.kernel_size - 2)
    patterns, pattern = torch.unique(torch.stack([visible.long(), offset], 1), dim=0, return_inverse=True)
    return AxisTiles(query, slot, key, inside, pattern, patterns[:, 0].bool(), patterns[:, 1])


@dataclass(frozen=True)
class TilePlan:
    """Two axes of tiles combined: the tiles of a map, as flat indices on one device.

    Attributes:
        size: Queries and keys of a tile on each axis: `(q_h, q_w), (k_h, k_w)`.
        query: `[T, q]` flat index of each query into the query map.
        slot: `[Q]` where in `query.flatten()` each query stands.
        padding: `[T, q]` repeated queries of tiles that are not full; None where there are none.
        key: `[T, k]` flat index of each key into the key map.
        outside: `[T, k]` slots beyond the map, which hold zero vectors; None where every slot is inside.
        pattern: `[T]` which of the C patterns a tile has.
        visible: `[C, q, k]` whether the query takes part with the key slot.
        offset_h, offset_w: `[C, q, k_h]`, `[C, q, k_w]` entries of the relative tables.
        bag, bag_start: The key slots of each key of the map: those of key x are `bag[bag_start[x]:bag_start[x + 1]]`.
    """

    size: tuple[tuple[int, int], tuple[int, int]]
    query: Tensor
    slot: Tensor
    padding: Tensor | None
    key: Tensor
    outside: Tensor | None
    pattern: Tensor
    visible: Tensor
    offset_h: Tensor
    offset_w: Tensor
    bag: Tensor
    bag_start: Tensor


@lru_cache(maxsize=MAX_CACHED_PLANS)
@outside_modes
def plan_tiles(window: Window, size: tuple[int, int], tile: tuple[int, int], device: torch.device) -> TilePlan:
    """The tiles of a key map of `size`, in tiles of at most `tile` queries; cached, see `MAX_CACHED_PLANS`."""
    rows, columns = (tile_axis(*args) for args in zip(window.axes, size, tile, strict=True))
    num_queries = window.num_queries(size)
    query = _combine(rows.query * num_queries[1], columns.query).flatten(2).flatten(0, 1)
    # A query stands in row-slot (tile, place) and column-slot (tile, place): regroup to (tile, tile, place, place).
    (tiles_w, queries_h), queries_w = (columns.query.shape[0], rows.query.shape[1]), columns.query.shape[1]
    row = (rows.slot // queries_h * tiles_w) * queries_h * queries_w + rows.slot % queries_h * queries_w
    column = columns.slot // queries_w * queries_h * queries_w + columns.slot % queries_w
    slot = (row[:, None] + column).flatten()

    padding = torch.ones(query.shape, dtype=torch.bool, device="cpu")
    padding.view(-1)[slot] = False

    key = _combine(rows.key * size[1], columns.key).flatten(2).flatten(0, 1)
    inside = (rows.inside[:, None, :, None] & columns.inside[:, None]).flatten(2).flatten(0, 1)
    pattern = (rows.pattern[:, None] * len(columns.visible) + columns.pattern).flatten()
    visible = rows.visible[:, None, :, None, :, None] & columns.visible[:, None, :, None]  # [C, C, q, q, k, k]
    visible = visible.flatten(4).flatten(2, 3).flatten(0, 1)
    shape = visible.shape[:2]
    offset_h = rows.offset[:, None, :, None].expand(-1, len(columns.visible), -1, queries_w, -1)
    offset_w = columns.offset[:, None].expand(len(rows.visible), -1, queries_h, -1, -1)

    held = inside.flatten().nonzero().flatten()
    held = held[torch.argsort(key.flatten()[held], stable=True)]
    counts = torch.bincount(key.flatten()[held], minlength=size[0] * size[1])
    return TilePlan(
        size=((queries_h, queries_w), (rows.key.shape[1], columns.key.shape[1])),
        query=query.to(device),
        slot=slot.to(device),
        padding=padding.to(device) if padding.any() else None,
        key=key.to(device),
        outside=None if inside.all() else (~inside).to(device),
        pattern=pattern.to(device),
        visible=visible.to(device),
        offset_h=offset_h.reshape(*shape, -1).to(device),
        offset_w=offset_w.reshape(*shape, -1).to(device),
        bag=held.to(device),
        bag_start=(counts.cumsum(0) - counts).to(device),
    )


def _combine(rows: Tensor, columns: Tensor) -> Tensor:
    """`[T_h, x_h]` and `[T_w, x_w]` row and column indices to flat ones, `[T_h, T_w, x_h, x_w]`."""
    return rows[:, None, :, None] + columns[:, None]
