"""Atomic file writes with the user's umask, and the names of files as text."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

WEIGHT_SOURCES = {"url", "file", "hf_hub_id", "state_dict"}
"""Keys of timm's ``pretrained_cfg`` under which it finds weights."""


def as_text(name: str) -> str:
    r"""Return a name that any file, terminal and figure takes.

    Python keeps the bytes of a file's name that are not UTF-8 as surrogates, which cannot be written: they become
    ``\xe9`` and the like.
    """
    return re.sub("[\ud800-\udfff]", _escape, name)


def _escape(surrogate: re.Match[str]) -> str:
    code = ord(surrogate[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def slug(name: str) -> str:
    """Return a name as part of a file's name: letters, digits, dots and hyphens stay, others become underscores."""
    return re.sub(r"[^\w.-]+", "_", name)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path``, of its suffix, for a file that takes its place once the block ends without an error."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # two processes may write one file
    try:
        yield temporary
        allow_reading(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def allow_reading(path: Path) -> None:
    """Gives a file the permissions of any new one; temporary files, and safetensors' own, are for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def save_weights(weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes tensors, of any device, as safetensors."""
    # Copies, as safetensors refuses tensors that share their memory.
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    with replacing(path) as temporary:
        save_file(copies, temporary, metadata)
