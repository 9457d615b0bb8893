"""Hashes of the contents of files, which are read again only after a change."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from visionattn.io import replacing

Part = str | Path | bytes
"""A file, another name, or bytes in memory."""

SETTLED_NS = 2 * 10**9
"""Worst resolution of dates: a file that is younger may change again and keep its date."""


def fingerprint(
    parts: Iterable[Part],
    memory: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    base: str = "",
) -> str:
    """Return a hash of names and, of files among them, of contents; the order of parts matters.

    The folder `memory` remembers hashes: files whose sizes, dates and inodes are what they were are not read again. A
    date of change (`ctime`) cannot be set back, so that no edit escapes where the file system keeps one. `base` is a
    beginning of names that does not count: the folder, which may be a copy elsewhere. `progress` is called with the
    number of parts that were read, and of all.
    """
    every = list(parts)
    if memory is None:
        return _hash_contents(every, progress, base)
    began = time.time_ns()
    record = memory / f"{hashlib.blake2b(b''.join(map(_label, every)), digest_size=8).hexdigest()}.json"
    state, newest = _hash_states([base.encode(errors="surrogateescape"), *every])
    if (known := _recall(record, state)) is not None:
        return known
    contents = _hash_contents(every, progress, base)
    if newest < began - SETTLED_NS:
        with contextlib.suppress(OSError):  # without the record, contents are read again: slower, never wrong
            memory.mkdir(parents=True, exist_ok=True)
            with replacing(record) as file:
                file.write_text(json.dumps({"state": state, "contents": contents}))
    return contents


def _hash_contents(parts: Sequence[Part], progress: Callable[[int, int], None] | None, base: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for number, part in enumerate(parts, 1):
        digest.update(_label(part, base))
        digest.update(_digest_of(part))
        if progress is not None:
            progress(number, len(parts))
    return digest.hexdigest()


def _digest_of(part: Part) -> bytes:
    """Return the digest of a part's bytes, which are none for a name that is no file."""
    if isinstance(part, bytes):
        return hashlib.blake2b(part).digest()
    try:
        with Path(part).open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except (OSError, ValueError) as error:  # what cannot be read now is another content once it can
        return type(error).__name__.encode()


def _hash_states(parts: Sequence[Part]) -> tuple[str, int]:
    """Return a hash of sizes, dates and inodes, and the date of the newest file in ns."""
    digest = hashlib.blake2b(digest_size=16)
    newest = 0
    for part in parts:
        digest.update(_label(part))
        if isinstance(part, bytes):
            digest.update(_digest_of(part))
            continue
        with contextlib.suppress(OSError, ValueError):
            state = Path(part).stat()
            digest.update(f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}".encode())
            newest = max(newest, state.st_mtime_ns, state.st_ctime_ns)
    return digest.hexdigest(), newest


def _label(part: Part, base: str = "") -> bytes:
    if isinstance(part, bytes):
        return b"\0bytes\0"
    return f"\0{str(part).removeprefix(base)}\0".encode(errors="surrogateescape")


def _recall(record: Path, state: str) -> str | None:
    try:
        stored = json.loads(record.read_bytes())
        return str(stored["contents"]) if stored["state"] == state else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def short_hash(values: Any) -> str:
    """Return a hash of plain values, for names of files."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()
