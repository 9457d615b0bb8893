"""Files that are there whole or not at all, and that those may read whom the user's umask lets."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

WEIGHT_SOURCES = {"url", "file", "hf_hub_id", "state_dict"}
"""Keys of timm's ``pretrained_cfg`` under which it finds weights."""


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
