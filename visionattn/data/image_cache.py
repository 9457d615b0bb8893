"""Decoded images in memory that all loader processes share."""

import mmap
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionattn.checks import check_range
from visionattn.data.balance import Targets
from visionattn.data.errors import DataError
from visionattn.data.sources import Source
from visionattn.words import sized

WORD = 8  # bytes of a number in the memory
USED, FULL, HEADER = 0, 1, 2
"""Numbers at the start of the memory: bytes in use, and whether an image did not fit; all places of images follow."""
TAKEN = -1
"""Place of an image that a process is writing."""


class SharedBytes:
    """Bytes, zero at first, that processes share however they start; they take memory only once they are written.

    They are not in ``/dev/shm``, which containers keep small. Where the system has no anonymous files, they are in a
    temporary file.

    Args:
        size: number of bytes, a multiple of 8.
        descriptor: open file with these bytes; None makes a new one.
    """

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        if descriptor is None and hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("visionattn-images")
        self.size, self.file = size, TemporaryFile() if descriptor is None else os.fdopen(descriptor, "r+b")  # noqa: SIM115
        self.file.truncate(size)
        self.bytes = memoryview(mmap.mmap(self.file.fileno(), size))
        self.numbers = self.bytes.cast("q")

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd

        return _attach, (self.size, DupFd(self.file.fileno()))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of such a block; the lock of a process that is killed is free again."""
        import fcntl

        fcntl.lockf(self.file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.file, fcntl.LOCK_UN)


def _attach(size: int, duplicate: Any) -> SharedBytes:
    return SharedBytes(size, duplicate.detach())


class ImageCache:
    """Memory for the decoded images of sources; create it before the processes that share it.

    Whichever process reads an image first keeps it. Once an image does not fit, no more are kept.

    Args:
        size: largest number of bytes, of images and their places.
    """

    def __init__(self, size: int) -> None:
        self.memory = SharedBytes(max(size // WORD, HEADER) * WORD)
        self.memory.numbers[USED] = HEADER * WORD
        self.sources: dict[str, CachedSource] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "sources": {}}  # a loader process knows its own source alone

    def wrap(self, split: str, source: Source) -> "CachedSource":
        """Return a source that reads through this cache, for a split the same each time."""
        if split not in self.sources:
            self.sources[split] = CachedSource(source, self)
        return self.sources[split]

    def reserve(self, size: int, place: int | None = None) -> int:
        """Return the start of `size` free bytes, or 0 if they are too many, or another process has taken the place."""
        numbers = self.memory.numbers
        with self.memory.locked():
            start, end = numbers[USED], numbers[USED] + -(-size // WORD) * WORD
            if numbers[FULL] or (place is not None and numbers[place]):
                return 0
            if end > self.memory.size:
                numbers[FULL] = 1
                return 0
            numbers[USED] = end
            if place is not None:
                numbers[place] = TAKEN
        return start

    def keep(self, place: int, item: Any) -> None:
        """Keep an item, if it fits, and write where it starts to its place, an index of the memory's numbers."""
        pieces = _Pieces()
        pickle.dump(item, pieces, protocol=5)
        if not (start := self.reserve(sum(map(len, pieces)), place)):
            return
        end = start
        for piece in pieces:
            self.memory.bytes[end : end + len(piece)] = piece
            end += len(piece)
        with self.memory.locked():  # other processes see the item before its place
            self.memory.numbers[place] = start

    def describe(self) -> str:
        """Return how many images of each split are kept, in words."""
        counts = [f"{kept.count():,} of {len(kept):,} {split}" for split, kept in self.sources.items()]
        full = ": it is full, others are read from their files" if self.memory.numbers[FULL] else ""
        used = sized(self.memory.numbers[USED])
        return f"cache: {', '.join(counts)} images, {used} of at most {sized(self.memory.size)}{full}"


class CachedSource:
    """Source whose images are decoded once, as far as the cache has room.

    Args:
        source: source of the images.
        cache: memory for them.
    """

    def __init__(self, source: Source, cache: ImageCache) -> None:
        self.source, self.cache = source, cache
        self.class_to_idx: Mapping[str, int] | None = source.class_to_idx
        self.places = cache.reserve(WORD * len(source)) // WORD  # 0 if there is no room for any image

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[Any, int | Tensor]:
        """Return the image, and its class index or 0 or 1 of each class."""
        place, memory = self.places + index, self.cache.memory
        if self.places and (start := memory.numbers[place]) > 0:
            image, target = pickle.loads(memory.bytes[start:])
            return image, torch.from_numpy(target) if isinstance(target, np.ndarray) else target
        image, target = self.source.read(index)
        if self.places and not memory.numbers[FULL]:
            # A tensor takes long to pickle, an array does not.
            self.cache.keep(place, (image, target.numpy() if isinstance(target, Tensor) else target))
        return image, target

    def name_of(self, index: int) -> str:
        """Return the name of an image in the source."""
        return self.source.name_of(index)

    def targets(self) -> Targets:
        """Return the targets of all images."""
        return self.source.targets()

    def count(self) -> int:
        """Return the number of images that are kept."""
        places = self.cache.memory.numbers[self.places : self.places + len(self)] if self.places else ()
        return sum(start > 0 for start in places)


class _Pieces(list[bytes]):
    """File of pickle that keeps what is written, so that pixels are not copied."""

    write = list.append


def check_cache(gigabytes: float) -> None:
    """Check the bound of a cache, in 10⁹ bytes.

    Raises:
        DataError: it is negative, the machine has less memory, or it is one of Windows.
    """
    check_range("data.cache", gigabytes, 0, error=DataError)
    if not gigabytes:
        return
    if find_spec("fcntl") is None:
        raise DataError(f"--data.cache {gigabytes:g} needs Linux or macOS: leave it out")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if gigabytes > memory:
        raise DataError(
            f"--data.cache {gigabytes:g} is more than the memory of this machine, {memory:.1f} GB: pass less"
        )
