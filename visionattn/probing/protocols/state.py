"""The state of a training in a file that is written atomically and checksummed."""

import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionattn.io import replacing


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values; a process that is killed leaves the old state or the new one.

    The file holds, in torch's format, a checksum, and the bytes of the state in the same format.

    Raises:
        OSError: It cannot be written; the old state stays.
    """
    path = Path(path)
    inner = _serialize(state)
    whole = _serialize({"checksum": zlib.crc32(inner), "state": torch.from_numpy(np.frombuffer(inner, np.uint8))})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, only_writer=True) as temporary:
            temporary.write_bytes(whole)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"cannot write {len(whole):,} bytes to {path}: {reason}; make room or name a file elsewhere, and run again"
        ) from error


def load_state(path: str | Path) -> dict[str, Any] | None:
    """Return a state that `save_state` wrote, with tensors on the CPU; None if there is no file.

    Raises:
        ValueError: The file is damaged or of another kind.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        outer = torch.load(path, map_location="cpu", weights_only=True)
        inner = outer["state"].numpy().tobytes()
        if zlib.crc32(inner) != outer["checksum"]:
            raise ValueError("checksum")
        state: dict[str, Any] = torch.load(BytesIO(inner), map_location="cpu", weights_only=True)
    except Exception as error:  # torch has many for what is no file of its own
        raise ValueError(f"{path} is damaged or no state of a training; delete it to start again") from error
    return state


def _serialize(content: dict[str, Any]) -> memoryview:
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()
