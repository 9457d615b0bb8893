"""Shared memory of some CTAs, which also records who touched what since the last barrier.

Two threads that touch the same bytes, one of them writing, need a barrier in between: lanes of a warp that of their
warp, others that of all. What an asynchronous copy fills must not be touched until it was waited for, and not by other
threads until a barrier after that; what an asynchronous product reads must not be written until it was waited for and
a barrier followed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from tests.kernels.ptx.formats import Array

BASE = 1024
"""Address of the first byte that a kernel owns: a GPU keeps what is before it."""

MANY = 65535
"""Record of threads of several warps."""

SYNCHRONISED, SEVERAL = 32, 33
"""In place of a lane: a warp that has passed a barrier of its own since, and several lanes of a warp."""

PATTERN = 1024
"""Bytes after which swizzled layouts repeat; memory is padded to it."""


@dataclass
class SharedMemory:
    """Bytes `[G, size]` and their records; these are `[G, size / grain]`, with 0 for nobody.

    Attributes:
        data: The bytes.
        size: Bytes that were asked for; more are padding.
        grain: Bytes that share a record, the fewest that an instruction of the kernel touches.
        writer, reader: Who wrote or read: 64 times the warp plus the lane plus one, or `MANY`. Threads may write the
            same value together.
        copying: Stage of the copy that fills it.
        copier: Who asked for that copy.
        multiplying: Stage of the product that reads it.
        unfenced: Whether it was written by a plain store that asynchronous products cannot see yet.
        copies, products: Groups of asynchronous copies and products committed.
        complaints: Messages about races, by instruction.
    """

    data: Array
    size: int
    grain: int
    writer: Array
    reader: Array
    copying: Array
    copier: Array
    multiplying: Array
    unfenced: Array
    copies: int = 0
    products: int = 0
    complaints: dict[str, str] = field(default_factory=dict)

    @classmethod
    def create(cls, rows: int, size: int, grain: int) -> SharedMemory:
        """Return memory full of NaN."""
        padded = -(-max(size, 1) // PATTERN) * PATTERN
        records = (rows, padded // grain)
        return cls(
            np.full((rows, padded), 0xFF, np.uint8),
            size,
            grain,
            *(np.zeros(records, dtype) for dtype in ("u2", "u2", "i4", "u2", "i4", "?")),
        )

    _ROWS = ("data", "writer", "reader", "copying", "copier", "multiplying", "unfenced")

    def select(self, rows: Array) -> SharedMemory:
        """Return the memory of some CTAs."""
        return replace(self, **{name: getattr(self, name)[rows] for name in self._ROWS})

    def join(self, other: SharedMemory) -> SharedMemory:
        """Return the memory of the CTAs of both. What is under way keeps its age: the groups committed after it."""
        copies, products = max(self.copies, other.copies), max(self.products, other.products)
        for memory in (self, other):
            memory.copying[memory.copying > 0] += copies - memory.copies
            memory.multiplying[memory.multiplying > 0] += products - memory.products
        parts = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in self._ROWS}
        return replace(self, **parts, copies=copies, products=products)

    def _locate(self, row: Array, thread: Array, address: Array, size: int, where: str) -> tuple[Array, Array, Array]:
        """Return offsets in a row, flat indices of records `[accesses, records]`, and the code of each thread."""
        start = address - BASE
        if start.size and (start.min() < 0 or start.max() + size > self.size):
            raise IndexError(f"{where}: shared address {address.max()} is outside {self.size} bytes from {BASE}")
        if (start % size).any():
            raise ValueError(f"{where}: shared address is not a multiple of {size}")
        records = self._indices(row, start, size, self.grain)
        return start, records, np.broadcast_to(_code(thread)[:, None], records.shape)

    def _indices(self, row: Array, start: Array, size: int, item: int) -> Array:
        """Return flat indices of the items of accesses, `[accesses, size / item]`."""
        return ((row * self.data.shape[1] + start) // item)[:, None] + np.arange(size // item)

    def _complain(self, where: str, what: str) -> None:
        self.complaints.setdefault(where, f"{where}: {what}")

    def load(self, row: Array, thread: Array, address: Array, size: int, dtype: str, where: str) -> Array:
        """Return `[accesses, size / itemsize]` elements at aligned addresses of `size` bytes."""
        start, records, own = self._locate(row, thread, address, size, where)
        self._reads(records, own, where)
        return self.data.view(dtype).reshape(-1)[self._indices(row, start, size, np.dtype(dtype).itemsize)]

    def _reads(self, records: Array, own: Array, where: str) -> None:
        if _others(self.writer.reshape(-1)[records], own).any():
            self._complain(where, "reads shared memory that another thread wrote since the last barrier")
        if self.copying.reshape(-1)[records].any():
            self._complain(where, "reads shared memory that an asynchronous copy, not waited for, is filling")
        self._mark(self.reader, records, own)

    def _mark(self, who: Array, records: Array, own: Array) -> None:
        """Record threads, or that there are several."""
        flat = who.reshape(-1)
        before = flat[records]
        flat[records] = own
        after = flat[records]
        clash = _others(before, own) | (after != own)
        if clash.any():
            records, own, before, after = (x[clash] for x in (records, own, before, after))
            alike = ((before == 0) | (_warp(before) == _warp(own))) & (_warp(after) == _warp(own))
            flat[records[alike]] = _code(_warp(own[alike]) * 32, SEVERAL)
            flat[records[~alike]] = MANY

    def _writes(self, records: Array, own: Array, where: str) -> None:
        for who, deed in ((self.writer, "wrote"), (self.reader, "read")):
            if _others(who.reshape(-1)[records], own).any():
                self._complain(where, f"writes shared memory that another thread {deed} since the last barrier")
        if self.copying.reshape(-1)[records].any():
            self._complain(where, "writes shared memory that an asynchronous copy, not waited for, is filling")
        if self.multiplying.reshape(-1)[records].any():
            self._complain(where, "writes shared memory that a wgmma, not waited for, is reading")

    def store(self, row: Array, thread: Array, address: Array, values: Array, where: str) -> None:
        """Store `[accesses, elements]` at addresses aligned to a row of them."""
        size = values.shape[1] * values.itemsize
        start, records, own = self._locate(row, thread, address, size, where)
        self._writes(records, own, where)
        self._mark(self.writer, records, own)
        lost = self._fill(row, start, values, where)
        if lost.any() and (self.writer.reshape(-1)[records[lost]] == MANY).any():
            self._complain(where, "warps write different values to the same shared memory")
        self.unfenced.reshape(-1)[records] = True

    def _fill(self, row: Array, start: Array, values: Array, where: str) -> Array:
        """Write, and return whose values were lost because others wrote to the same place."""
        flat = self.data.view(values.dtype).reshape(-1)
        index = self._indices(row, start, values.shape[1] * values.itemsize, values.itemsize)
        flat[index] = values
        lost = (flat[index] != values).any(1)
        if lost.any() and not _alike(flat[index][lost], values[lost]):
            self._complain(where, "threads write different values to the same shared memory")
        return lost

    def copy(self, row: Array, thread: Array, address: Array, values: Array, where: str) -> None:
        """Start an asynchronous copy of `[accesses, words]`, which belongs to the group that is committed next."""
        size = values.shape[1] * values.itemsize
        start, records, own = self._locate(row, thread, address, size, where)
        self._writes(records, own, where)
        self._fill(row, start, values, where)
        self.unfenced.reshape(-1)[records] = False
        self.copying.reshape(-1)[records] = self.copies + 1
        self.copier.reshape(-1)[records] = own

    def commit_copies(self) -> None:
        """Close a group of copies."""
        self.copies += 1

    def wait_copies(self, left: int) -> None:
        """Wait until at most `left` committed groups of copies are under way."""
        done = (self.copying > 0) & (self.copying <= self.copies - left)
        self.writer[done] = self.copier[done]
        self.copying[done] = 0

    def barrier(self) -> None:
        """Let all threads of each CTA meet."""
        self.writer[...] = 0
        self.reader[...] = 0

    def warp_barrier(self) -> None:
        """Let the lanes of each warp meet."""
        for who in (self.writer, self.reader):
            known = (who != 0) & (who != MANY)
            who[known] = _code(_warp(who[known]) * 32, SYNCHRONISED)

    def fence(self) -> None:
        """Show what was stored to asynchronous products."""
        self.unfenced[...] = False

    def load_matrices(self, row: Array, address: Array, dtype: str, where: str) -> Array:
        """Return elements `[products, ...]` that asynchronous products of the group that is committed next read."""
        item = np.dtype(dtype).itemsize
        start = address - BASE
        if start.min() < 0 or start.max() + item > self.size:
            raise IndexError(f"{where}: a wgmma reads outside {self.size} bytes of shared memory")
        position = row.reshape(-1, *[1] * (address.ndim - 1)) * self.data.shape[1] + start
        records = np.unique(position // self.grain)
        if self.writer.reshape(-1)[records].any():
            self._complain(where, "wgmma reads shared memory that was written since the last barrier")
        if self.copying.reshape(-1)[records].any():
            self._complain(where, "wgmma reads shared memory that an asynchronous copy, not waited for, is filling")
        if self.unfenced.reshape(-1)[records].any():
            self._complain(where, "wgmma reads shared memory that was stored without fence.proxy.async")
        self.multiplying.reshape(-1)[records] = self.products + 1
        return self.data.view(dtype).reshape(-1)[position // item]

    def wait_products(self, left: int) -> None:
        """Wait until at most `left` committed groups of products are under way."""
        done = (self.multiplying > 0) & (self.multiplying <= self.products - left)
        self.reader[done] = MANY
        self.multiplying[done] = 0


def _code(thread: Array, lane: int | None = None) -> Array:
    """Return the record of a thread, or of something in place of its lane."""
    thread = thread.astype(np.uint16)
    return (thread // 32 * 64 + (thread % 32 if lane is None else lane) + 1).astype(np.uint16)


def _warp(code: Array) -> Array:
    return (code - np.uint16(1)) // 64


def _others(code: Array, own: Array) -> Array:
    """Return where a record is of another thread, with which no barrier was passed."""
    return (code != 0) & (code != own) & (code != _code(_warp(own) * 32, SYNCHRONISED))


def _alike(a: Array, b: Array) -> bool:
    """Return whether values that threads write together differ by rounding only, as they may in lanes of one warp.

    Triton lets lanes that hold the same sum store it together, and a multiplication fused with the addition of another
    lane's product rounds differently in either lane.
    """
    if a.dtype == np.uint32:
        return bool(np.isclose(a.view(np.float32), b.view(np.float32), rtol=1e-4, atol=1e-5, equal_nan=True).all())
    return bool((np.abs(a.astype(np.int64) - b.astype(np.int64)) <= 1).all())
