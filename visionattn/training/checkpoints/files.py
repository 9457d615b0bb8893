"""Files of weights, read without running code that they may hold, and with their checksums."""

import argparse
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

METADATA_KEY = "visionattn"
"""Key of ``ModelSpec.to_dict()`` in a training checkpoint, and as JSON in the metadata of a ``.safetensors`` file."""

METADATA = "meta.pt"
"""Lightning's file in a sharded checkpoint (a folder) without weights and optimizer state; written last."""


def is_sharded(path: Path) -> bool:
    """Return whether ``path`` is a complete sharded checkpoint, as ``--trainer.strategy fsdp2_sharded`` writes them."""
    return (path / METADATA).is_file()


def read_checkpoint(path: Path, mmap: bool = True) -> dict[str, Any]:
    """Read a file of weights onto the CPU, without running code that it may hold.

    Args:
        path: a file that ``torch.save`` wrote, whose checksums are compared (torch before 1.6 wrote none), or a
            ``.safetensors`` file, which has none.
        mmap: leave tensors on disk until they are used.

    Returns:
        The content. Of a ``.safetensors`` file the tensors by name and, if it describes its model, the description
        under ``METADATA_KEY``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, a file of another kind, a damaged one, or one that holds pickled code.
    """
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if is_sharded(path):
        raise ValueError(
            f"{path} is a folder of shards, from which --trainer.strategy fsdp2 and fsdp2_sharded resume; to make it a "
            f"file: python -m lightning.fabric.utilities.consolidate_checkpoint {path}"
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the checkpoint file in it")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    check_whole(path)
    try:
        # timm's training checkpoints hold their options as an argparse.Namespace. A mapped file leaves the optimizer's
        # state, twice the size of the weights, on disk; only the zip format can be mapped.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and _is_zip(path))
    except PermissionError:
        raise
    except Exception as error:
        # The bytes of another kind of file may cause any error: KeyError, EOFError, …
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} holds pickled code ({match[1]}), which is never run: save the state dict alone, "
                "torch.save(model.state_dict(), FILE)"
            ) from error
        raise ValueError(f"{path} is not a checkpoint, or only part of one") from error
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise ValueError(f"{path} is not a checkpoint: it holds a {kind} where a dict is expected")  # noqa: TRY004
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        content: dict[str, Any] = dict(load_file(path))
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        return content if text is None else {**content, METADATA_KEY: json.loads(text)}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or only part of one: {error}") from error
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} does not describe its model in JSON: {error}") from error


def check_whole(path: Path) -> None:
    """Compare the checksums of a file that ``torch.save`` wrote; torch itself does not. Other files have none.

    Raises:
        ValueError: they do not match.
    """
    if _is_zip(path) and not is_whole(path):
        raise ValueError(f"{path} is damaged: its checksums do not match; copy it again, or take another checkpoint")


def is_whole(path: Path) -> bool:
    """Return whether a file is a zip, as ``torch.save`` writes it, with correct checksums; reads all of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises many for files that are no zip, or a damaged one
        return False


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one whose table of contents is damaged
        return True
