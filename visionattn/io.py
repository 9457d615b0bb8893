"""Atomic file writes, and the names of files as text.

Every file that the package writes is written by `replacing`, or by `replacing_all` where several files belong together;
tables that grow row by row by `visionattn.row_files.RowFile`.
A file is written in full beside its place, flushed to the disk (fsync), given the permissions of the user's umask, and
renamed. A killed process, a full disk or a power failure leaves either the old content or the new one.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

WEIGHT_SOURCES = {"url", "file", "hf_hub_id", "state_dict"}
"""Keys of timm's ``pretrained_cfg`` that say where weights are."""


def as_text(name: str) -> str:
    r"""Return a file name that can be written to any file, terminal and figure.

    Python keeps bytes of a file name that are not UTF-8 as surrogates, which cannot be encoded. They become escapes
    such as ``\xe9``.
    """
    return re.sub("[\ud800-\udfff]", _escape, name)


def _escape(surrogate: re.Match[str]) -> str:
    code = ord(surrogate[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def slug(name: str) -> str:
    """Return a name as part of a file's name: letters, digits, dots and hyphens stay, others become underscores."""
    return re.sub(r"[^\w.-]+", "_", name)


@contextmanager
def replacing(path: Path, only_writer: bool = False) -> Iterator[Path]:
    """Yield a path to write to; the file there replaces ``path`` if the block ends without an error.

    Args:
        path: the file to replace, in a folder that exists.
        only_writer: whether no other process writes ``path``. The path to write to then always has the same name, so
            that the next write clears what a killed process left. Otherwise the name holds the process id.
    """
    temporary = path.with_name(f".{path.stem}.{'new' if only_writer else os.getpid()}{path.suffix}")
    try:
        yield temporary
        put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_all(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; its files move to ``folder`` if the block ends without an error."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new.") as name:
        yield Path(name)
        for file in Path(name).iterdir():
            put(file, folder / file.name)


def put(temporary: Path, path: Path) -> None:
    """Put a file that is complete in the place of another one, or of none."""
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)  # temporary files, and safetensors' own, are for their owner alone
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def save_weights(weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any device to a safetensors file."""
    # Copies, as safetensors refuses tensors that share their memory.
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    with replacing(path) as temporary:
        save_file(copies, temporary, metadata)
