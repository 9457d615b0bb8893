"""Arrays on disk with a row for each image, in shards that are keyed, checksummed and written atomically.

In a folder lie `manifest.json`, which says what the arrays were made from, and a folder for each view of the images.
There every shard has its arrays, `00003.last.tokens.npy`, and their checksums, `00003.json`. These are written last, so
that a shard without them does not count, whenever the process that wrote it was killed.
"""

import hashlib
import json
import math
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from visionattn.io import replacing

MANIFEST, LOCK = "manifest.json", ".lock"
FORMAT = 2
SHARD_BYTES = 128 * 2**20
"""Approximate size of the largest array of a shard, each of which is built in memory."""
SHARD_ROWS = 4096
"""A shard has no more rows than that."""


class Field(NamedTuple):
    """Type (as NumPy names it) and shape of an array's values for one image."""

    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Number of bytes for one image."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


class ShardedArrays:
    """Arrays by name (`fields`) of a number of images, in shards; `key` is a hash of the identity.

    Images that cannot be read are left out, so that a shard may have fewer rows than images.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        fields: Mapping[str, Field],
        num_images: int,
        rows_per_shard: int | None = None,
    ) -> None:
        """Name the arrays, without reading or writing.

        The identity is all that the content depends on, as plain values, and `fields` are all possible arrays. A shard
        has by default as many images as fit in `SHARD_BYTES`.
        """
        largest = max(field.nbytes for field in fields.values())
        self.folder, self.fields, self.num_images = folder, dict(fields), num_images
        self.rows_per_shard = rows_per_shard or min(max(SHARD_BYTES // largest, 1), SHARD_ROWS)
        canonical = json.dumps(
            {**identity, "number of images": num_images, "shard size": self.rows_per_shard, "format": FORMAT},
            sort_keys=True,
        )
        self.identity: dict[str, Any] = json.loads(canonical)
        self.key = hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()

    @property
    def num_shards(self) -> int:
        """Number of shards of each view."""
        return -(-self.num_images // self.rows_per_shard)

    def images(self, shard: int) -> range:
        """Return the images of a shard."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.num_images))

    @contextmanager
    def only_writer(self) -> Iterator[None]:
        """Make the folder, and lock it against other processes of this machine."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as file:
            _lock(file.fileno(), self.folder)
            yield

    def claim(self, rebuild: bool = True) -> None:
        """Make the folder one of this identity, complete or not; `rebuild` removes arrays of another, with a warning.

        Raises:
            ValueError: The folder holds arrays of another identity and `rebuild` is False, or other files.
        """
        manifest = self.folder / MANIFEST
        if not manifest.exists():
            others = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
            if others:
                raise ValueError(f"{self.folder} is no feature cache, it holds {others[0]}; name a new or empty folder")
        else:
            stored = _read_json(manifest)
            if stored.get("key") == self.key:
                return
            fault = f"the feature cache in {self.folder} is stale ({_difference(stored, self.identity)})"
            if not rebuild:
                raise ValueError(f"{fault}; let it be rebuilt or name another folder")
            warnings.warn(f"{fault}: it is rebuilt", stacklevel=2)
            for view in self.folder.glob("view*"):
                shutil.rmtree(view)
        arrays = {name: field._asdict() for name, field in self.fields.items()}
        _write_json(manifest, {"key": self.key, "identity": self.identity, "arrays": arrays})

    def missing(self, view: int, names: Sequence[str], verify: bool = True) -> list[int]:
        """Return the shards of a view that lack one of these arrays, or hold a damaged one, of which a warning tells.

        With `verify` checksums are compared.
        """
        return [shard for shard in range(self.num_shards) if not self._is_whole(view, shard, names, verify)]

    def require_space(self, num_bytes: int) -> None:
        """Raise an OSError unless the disk has room for this number of bytes."""
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            raise OSError(
                f"the feature cache in {self.folder} needs {num_bytes:,} bytes more and the disk has {free:,}; "
                "free some, name a folder on another disk, or lower the budget for tokens"
            )

    def write(self, view: int, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of a shard; if that fails, what was complete before stays so."""
        record = self._record(view, shard)
        try:
            record.parent.mkdir(exist_ok=True)
            record.unlink(missing_ok=True)
            checksums = {name: self._write(view, shard, name, array) for name, array in arrays.items()}
            _write_json(record, {"checksums": checksums})
        except OSError as error:
            num_bytes = sum(array.nbytes for array in arrays.values())
            raise OSError(
                f"cannot write {num_bytes:,} bytes to the feature cache in {self.folder}: {error.strerror or error}; "
                "make room and run again, which resumes from here"
            ) from error

    def read(self, view: int, shard: int, name: str) -> np.ndarray:
        """Return an array of a shard, mapped from its file."""
        return np.load(self._array(view, shard, name), mmap_mode="r")

    def column(self, view: int, name: str) -> np.ndarray:
        """Return an array of all shards, in memory."""
        return np.concatenate([self.read(view, shard, name) for shard in range(self.num_shards)])

    def _record(self, view: int, shard: int) -> Path:
        return self.folder / f"view{view}" / f"{shard:05d}.json"

    def _array(self, view: int, shard: int, name: str) -> Path:
        return self.folder / f"view{view}" / f"{shard:05d}.{name}.npy"

    def _write(self, view: int, shard: int, name: str, array: np.ndarray) -> int:
        assert (array.dtype.name, array.shape[1:]) == self.fields[name]
        path = self._array(view, shard, name)
        with replacing(path, only_writer=True) as temporary, temporary.open("wb") as file:
            checked = _Checked(file)
            np.lib.format.write_array(checked, array, allow_pickle=False)
            return checked.checksum

    def _is_whole(self, view: int, shard: int, names: Sequence[str], verify: bool) -> bool:
        record = self._record(view, shard)
        if not record.exists():
            return False
        checksums = _read_json(record).get("checksums")
        if not isinstance(checksums, dict):
            return self._damaged(record)
        for name in names:
            path = self._array(view, shard, name)
            if name not in checksums:
                return False
            if not path.exists() or (verify and _checksum(path) != checksums[name]):
                return self._damaged(path)
        return True

    def _damaged(self, path: Path) -> bool:
        warnings.warn(f"{path} is damaged: its shard is computed again", stacklevel=2)
        return False


class _Checked:
    """A file to write to that takes the checksum of what it is given."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.checksum = file, 0

    def write(self, data: bytes) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        return self.file.write(data)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path, only_writer=True) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a file; nothing if it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _difference(stored: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """Describe how a manifest differs from an identity."""
    made_from = stored.get("identity")
    if not isinstance(made_from, dict):
        return "its manifest is damaged"
    names = [name for name in {**identity, **made_from} if made_from.get(name) != identity.get(name)]
    names = ["images" if name == "pictures" else name for name in names]  # the key of the first caches
    return f"it was made with other {', '.join(names)}" if names else "its manifest is damaged"


@contextmanager
def only_user(folder: Path) -> Iterator[None]:
    """Make a folder, and lock it against other processes of this machine until the block ends.

    The block may remove the folder: a process that waits for the lock makes it again.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            place = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # removed in between
            continue
        try:
            _lock(place, folder)
            if folder.exists() and os.path.samestat(os.fstat(place), folder.stat()):
                yield
                return
        finally:
            os.close(place)


def _lock(file: int, folder: Path) -> None:
    """Lock a file until it is closed, if the system has such locks."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        warnings.warn(f"waiting for another process that fills the feature cache in {folder}", stacklevel=2)
        fcntl.flock(file, fcntl.LOCK_EX)
