"""Measured tiles on disk, a JSON file each: processes that tune at the same time replace whole files and merge nothing.

The files are in the folder `triton_tiles` of `$VISIONATTN_CACHE`, by default of `visionattn` beside torch's hub
(`~/.cache/torch/visionattn`). Each says for which problem, device and versions it was measured.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from visionattn_kernels.attention.triton.plan import Tile

_log = logging.getLogger(__name__)


def folder() -> Path:
    """Return where measured tiles are kept."""
    root = os.environ.get("VISIONATTN_CACHE") or Path(torch.hub.get_dir()).parent / "visionattn"
    return Path(root) / "triton_tiles"


def load(key: Mapping[str, Any]) -> Tile | None:
    """Return the tile of a key; None if there is none, or if its file is damaged or of another key."""
    try:
        entry = json.loads(_path(key).read_text())
        fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in entry["tile"].items()}
        tile = Tile(**fields)
        return tile if entry["problem"] == key and _is_valid(tile) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def store(key: Mapping[str, Any], tile: Tile, milliseconds: float) -> None:
    """Store the tile of a key, whose values are as JSON returns them; if the folder cannot be written, only warn."""
    path = _path(key)
    entry = {"problem": key, "tile": tile._asdict(), "milliseconds": round(milliseconds, 5)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as there:
            file = Path(there) / path.name
            file.write_text(json.dumps(entry, indent=1))
            file.replace(path)  # atomic
    except OSError as error:
        _log.warning("measured tiles are not kept: %s; set VISIONATTN_CACHE to a folder that can be written", error)


def _path(key: Mapping[str, Any]) -> Path:
    return folder() / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.json"


def _is_valid(tile: Tile) -> bool:
    """Return whether kernels can be compiled with these numbers."""
    sides = (*tile.query, *tile.key)
    powers = (*sides, tile.num_warps)
    return (
        len(tile.query) == len(tile.key) == 2
        and all(type(x) is int and x >= 1 for x in (*powers, tile.num_stages))
        and type(tile.max_registers) is int
        and tile.max_registers >= 0
        and all(x & (x - 1) == 0 for x in powers)
        and math.prod(tile.query) >= 16 <= math.prod(tile.key)
    )
