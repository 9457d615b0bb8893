"""Tiles: rectangles of neighbouring queries beside the keys that any of them sees, and how to gather and sum them.

Shape letters: T tiles, q queries and k keys of a tile, C distinct patterns of tiles, Q queries of an axis or map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels.device_tables import device_tables
from visionattn_kernels.tracing import outside_modes
from visionattn_kernels.window.rule import AxisWindow, Window

Size = tuple[int, int]


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
    """Cut the queries of an axis into tiles of `tile` neighbours."""
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

    size: tuple[Size, Size]
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


@device_tables
def plan_tiles(window: Window, size: Size, tile: Size, device: torch.device) -> TilePlan:
    """Cut a key map of `size` into tiles of at most `tile` queries; cached, see `device_tables`."""
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
    """Turn row and column indices `[T_h, x_h]` and `[T_w, x_w]` into flat ones, `[T_h, T_w, x_h, x_w]`."""
    return rows[:, None, :, None] + columns[:, None]


Candidate = tuple[int, int, int]
"""On one axis: queries of a tile, number of tiles, and keys of a tile."""


@lru_cache(maxsize=1024)
@outside_modes
def choose_tile(window: Window, size: Size, estimates: bool = False) -> Size:
    """Return rows and columns of the tile of queries with the least work: products over its keys, and fetching them.

    Args:
        window: Which keys a query sees.
        size: Height and width of the key map.
        estimates: Whether to try twice as many sizes, by a bound on their keys, instead of cutting tiles of each size.
    """
    candidates = _estimate_tiles if estimates else _cut_tiles
    rows, columns = (list(candidates(axis, length)) for axis, length in zip(window.axes, size, strict=True))
    # A key slot costs as much to fetch as about 24 queries to multiply with.
    return min(
        (tiles_h * tiles_w * keys_h * keys_w * (height * width + 24), (height, width))
        for height, tiles_h, keys_h in rows
        for width, tiles_w, keys_w in columns
    )[1]


def _cut_tiles(axis: AxisWindow, length: int) -> Iterator[Candidate]:
    for tile in {min(x, axis.num_queries(length)) for x in (1, 2, 3, 4, 6, 8, 12, 16, _block(axis))}:
        num_tiles, num_keys = tile_axis(axis, length, tile).key.shape
        yield tile, num_tiles, num_keys


def _estimate_tiles(axis: AxisWindow, length: int) -> Iterator[Candidate]:
    queries, keys = (-(-x // axis.dilation) for x in (axis.num_queries(length), length))  # of a dilation group
    for tile in {min(x, queries) for x in (*range(1, 17), _block(axis), 2 * _block(axis))}:
        span = (tile - 1) * axis.query_stride // axis.dilation
        blocks = span // axis.stride + (span % axis.stride > 0 and (span + 1) % axis.stride > 0)
        union = axis.kernel_size + blocks * axis.stride
        yield tile, -(-queries // tile) * axis.dilation, union if axis.margin(keys) else min(union, keys)


def _block(axis: AxisWindow) -> int:
    """Return the number of neighbouring queries that share a window."""
    return max(1, axis.stride // axis.query_stride)


STRIP = 8
"""Neighbouring query columns of a strip: more would multiply with keys that most of them do not see."""

PANEL_BYTES = 1 << 18
"""Largest size of the packed keys and values of a strip, if the window allows: a quarter of a usual L2 cache."""


def choose_strip(window: Window, size: Size, channels: int) -> Size:
    """Return rows and columns of a tile for kernels that pack its keys and values into one panel of float32.

    Args:
        window: Which keys a query sees.
        size: Height and width of the key map.
        channels: Of a key and a value together.
    """
    (rows, columns), (height, width) = window.axes, size
    strip = _even_tile(columns, width, STRIP)
    row_bytes = 4 * channels * (strip * columns.query_stride + columns.kernel_size)
    # Few rows would pack the same keys again and again.
    most = max(PANEL_BYTES // row_bytes - rows.kernel_size, rows.kernel_size // 2, 4)
    return _even_tile(rows, height, most), strip


def _even_tile(axis: AxisWindow, length: int, most: int) -> int:
    """Cut the queries of a dilation group into tiles of nearly equal size, along the blocks that share a window."""
    queries, block = math.ceil(axis.num_queries(length) / axis.dilation), _block(axis)
    if 1 < block <= most:
        return most // block * block
    whole = min(queries, block) if block > 1 else queries
    return math.ceil(whole / math.ceil(whole / most))


class TiledMap:
    """Gathers heads-last maps into tiles and sums tiles back, for some of all `batch * heads` at a time.

    Maps are read as matrices with a row per image, position and head: `[B * positions * heads, c]`.
    """

    SCORES_PER_CHUNK = 1 << 19  # 2 MB of fp32 scores: they stay in cache between two steps
    KEY_VALUES_PER_GROUP = 1 << 21  # 8 MB of parts of key sums

    def __init__(self, plan: TilePlan, size: Size, like: Tensor, dtype: torch.dtype) -> None:
        """Lay tiles over a map.

        Args:
            plan: The tiles.
            size: Height and width of the key map.
            like: A map with the number of images and heads.
            dtype: Of the computation.
        """
        self.plan, self.dtype = plan, dtype
        self.batch, self.heads = like.shape[0], like.shape[3]
        self.num_heads, self.num_positions = self.batch * self.heads, size[0] * size[1]
        self.num_tiles, self.num_queries = plan.query.shape
        self.num_keys = plan.key.shape[1]

    def query_rows(self, head: Tensor, tiles: Tensor | slice) -> Tensor:
        """Number rows of a query map, by numbers of `batch * heads` that broadcast with `[..., t, q]`."""
        return self._rows(head, self.plan.query[tiles], self.plan.slot.numel())

    def key_rows(self, head: Tensor, tiles: Tensor | slice) -> Tensor:
        """Number rows of a key map, by numbers of `batch * heads` that broadcast with `[..., t, k]`."""
        return self._rows(head, self.plan.key[tiles], self.num_positions)

    def _rows(self, head: Tensor, position: Tensor, num_positions: int) -> Tensor:
        return head // self.heads * (num_positions * self.heads) + head % self.heads + position * self.heads

    def gather_keys(self, rows: Tensor, matrix: Tensor, tiles: Tensor | slice) -> Tensor:
        """Gather vectors at `key_rows`, in the dtype of the computation; zero beyond the border."""
        keys = F.embedding(rows, matrix).to(self.dtype)
        return keys if self.plan.outside is None else keys.masked_fill_(self.plan.outside[tiles][..., None], 0)

    def group_heads(self, channels: int) -> Iterator[slice]:
        """Cut `batch * heads` into runs whose key tiles of `channels` are summed together."""
        yield from slices(0, self.num_heads, self.KEY_VALUES_PER_GROUP // (self.plan.key.numel() * channels))

    def sum_keys(self, tiles: Tensor) -> Tensor:
        """Sum key tiles `[heads * T, k, c]` of some heads over the slots of each key: `[heads, H * W, c]`."""
        head = torch.arange(len(tiles) // self.num_tiles, device=tiles.device)[:, None]
        bag = (head * self.plan.key.numel() + self.plan.bag).flatten()
        start = (head * self.plan.bag.numel() + self.plan.bag_start).flatten()
        return F.embedding_bag(bag, tiles.flatten(0, 1), start, mode="sum").view(len(head), -1, tiles.shape[-1])


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Cut a range into runs of `step`, at least 1."""
    for first in range(start, stop, max(1, step)):
        yield slice(first, min(first + max(1, step), stop))
