"""Global memory: that of CPU tensors, with bounds, and records of which thread touched what during a launch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from tests.kernels.ptx.formats import Array

GRAIN = 2
"""Bytes that share a record, the fewest that our kernels touch."""

MANY = -1


class Region:
    """Memory from `start` to `stop`, with records; 0 is nobody, threads and CTAs are counted from one.

    Two threads that touch the same bytes, one of them writing, need a barrier of their CTA in between; threads of two
    CTAs have none. A thread may write the value that is there.
    """

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.base = start // 16 * 16
        size = -(-(stop - self.base) // 16) * 16
        # The tensor's allocation may end before `size`; accesses are checked against `stop`.
        self.data = np.frombuffer((ctypes.c_uint8 * size).from_address(self.base), np.uint8)
        self.records: dict[str, Array] = {}

    def record(self, name: str) -> Array:
        """Return a record by grain, made at its first use."""
        if name not in self.records:
            self.records[name] = np.zeros(len(self.data) // GRAIN, np.int32)
        return self.records[name]


class Actor:
    """The threads of an access: numbers of thread and CTA, counted from one, and barriers passed, each `[accesses]`."""

    def __init__(self, thread: Array, cta: Array, epoch: Array) -> None:
        self.thread, self.cta, self.epoch = thread, cta, epoch

    def __getitem__(self, chosen: Array) -> Actor:
        return Actor(self.thread[chosen], self.cta[chosen], self.epoch[chosen])


class GlobalMemory:
    """The memory of some tensors."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        extents = sorted({_extent(x) for x in tensors if x.numel()})
        merged: list[list[int]] = []
        for start, stop in extents:
            if merged and start < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], stop)
            else:
                merged.append([start, stop])
        self.regions = [Region(*extent) for extent in merged]
        self.starts = np.array([r.start for r in self.regions], np.int64)
        self.complaints: dict[str, str] = {}

    def _find(self, address: Array, size: int, where: str) -> Iterator[tuple[Region, Array | None]]:
        """Yield regions, with the accesses that meet them; None for all."""
        if (address % size).any():
            raise ValueError(f"{where}: global address is not a multiple of {size}")
        number = np.searchsorted(self.starts, address, side="right") - 1
        numbers = np.unique(number)
        for n in numbers:
            chosen = None if len(numbers) == 1 else number == n
            inside = address if chosen is None else address[chosen]
            if n < 0 or inside.max() + size > self.regions[n].stop:
                raise IndexError(f"{where}: global address {inside.max():#x} + {size} is outside every tensor")
            yield self.regions[n], chosen

    def load(self, address: Array, size: int, dtype: str, actor: Actor, where: str) -> Array:
        """Return `[accesses, size / itemsize]` elements at aligned addresses of `size` bytes."""
        item = np.dtype(dtype).itemsize
        result = np.empty((len(address), size // item), dtype)
        for region, chosen in self._find(address, size, where):
            index = (address if chosen is None else address[chosen]) - region.base
            found = region.data.view(dtype)[(index // item)[:, None] + np.arange(size // item)]
            self._reads(region, index, size, actor if chosen is None else actor[chosen], where)
            result[slice(None) if chosen is None else chosen] = found
        return result

    def store(self, address: Array, values: Array, actor: Actor, where: str) -> None:
        """Store `[accesses, elements]` at addresses aligned to a row of them."""
        item, count = values.itemsize, values.shape[1]
        for region, chosen in self._find(address, item * count, where):
            every = slice(None) if chosen is None else chosen
            index = address[every] - region.base
            flat, place = region.data.view(values.dtype), (index // item)[:, None] + np.arange(count)
            changes = flat[place] != values[every]
            self._writes(region, index, changes, item, actor if chosen is None else actor[chosen], where)
            flat[place] = values[every]
            if (flat[place] != values[every]).any():
                self._complain(where, "threads write different values to the same global memory")

    def _complain(self, where: str, what: str) -> None:
        self.complaints.setdefault(where, f"{where}: {what}")

    def _reads(self, region: Region, index: Array, size: int, actor: Actor, where: str) -> None:
        grains = (index // GRAIN)[:, None] + np.arange(size // GRAIN)
        thread, cta, epoch = actor.thread[:, None], actor.cta[:, None], actor.epoch[:, None]
        if "writer" in region.records:
            writer = region.record("writer")[grains]
            unordered = (region.record("writer_cta")[grains] != cta) | (region.record("writer_epoch")[grains] == epoch)
            if ((writer != 0) & (writer != thread) & unordered).any():
                self._complain(where, "reads global memory that another thread wrote without a barrier in between")
        for name, own in (("reader", thread), ("reader_cta", cta)):
            record = region.record(name)
            before = record[grains]
            record[grains] = own
            several = ((before != 0) & (before != own)) | (record[grains] != own)
            if several.any():
                record[grains[several]] = MANY
        region.record("reader_epoch")[grains] = epoch

    def _writes(self, region: Region, index: Array, changes: Array, item: int, actor: Actor, where: str) -> None:
        parts = item // GRAIN
        grains = ((index // GRAIN)[:, None] + np.arange(changes.shape[1] * parts)).reshape(-1)
        changed = np.repeat(changes.reshape(-1), parts)
        each = changes.shape[1] * parts
        thread, cta, epoch = (np.repeat(x, each) for x in (actor.thread, actor.cta, actor.epoch))
        for who, deed in (("writer", "wrote"), ("reader", "read")):
            if who not in region.records:
                continue
            touched = region.record(who)[grains]
            unordered = (region.record(f"{who}_cta")[grains] != cta) | (region.record(f"{who}_epoch")[grains] == epoch)
            if ((touched != 0) & (touched != thread) & unordered & changed).any():
                self._complain(where, f"writes global memory that another thread {deed} without a barrier in between")
        region.record("writer")[grains], region.record("writer_cta")[grains] = thread, cta
        region.record("writer_epoch")[grains] = epoch


def _extent(x: torch.Tensor) -> tuple[int, int]:
    """Return addresses of the first byte of a tensor, and of the one after its last."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()
