"""Files of weights: read without running code that they may hold, and with a look at their checksums."""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

METADATA = "meta.pt"
"""Lightning's file in a sharded checkpoint (a folder) for all but weights and the optimizer's state, written last."""


def is_sharded(path: Path) -> bool:
    """Whether ``path`` is a whole sharded checkpoint, as ``--trainer.strategy fsdp2_sharded`` writes them."""
    return (path / METADATA).is_file()


def read_checkpoint(path: Path, mmap: bool = True) -> dict[str, Any]:
    """Reads a file of weights onto the CPU, without running any code that it may hold.

    Args:
        path: what ``torch.save`` wrote, or a ``.safetensors`` file. Of the first kind, checksums are compared, which
            torch does not; the second has none, nor have files of torch before 1.6.
        mmap: leave tensors on disk until they are used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, a file of another kind, a damaged one, or one that holds pickled code.
    """
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if is_sharded(path):
        raise ValueError(
            f"{path} is a folder of shards, with which --trainer.strategy fsdp2 and fsdp2_sharded go on; to make it a "
            f"file: python -m lightning.fabric.utilities.consolidate_checkpoint {path}"
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the checkpoint file in it")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file, or only part of one: {error}") from error
    check_whole(path)
    try:
        # timm's training checkpoints hold their options as an argparse.Namespace. Mapping the file leaves the
        # optimizer's state, twice the size of the weights, on disk; only the zip format can be mapped.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and _is_zip(path))
    except PermissionError:
        raise
    except Exception as error:
        # A file of any other kind fails in whatever way its bytes happen to lead to: KeyError, EOFError, …
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} holds pickled code ({match[1]}), which is never run: save the state dict alone, "
                "torch.save(model.state_dict(), FILE)"
            ) from error
        raise ValueError(f"{path} is not a checkpoint, or only part of one") from error
    if not isinstance(content, Mapping):
        raise ValueError(  # noqa: TRY004  it is the file that is wrong, not an argument's type
            f"{path} is not a checkpoint: it holds a {type(content).__name__} where a dict is expected"
        )
    return dict(content)


def check_whole(path: Path) -> None:
    """Compares the checksums of a file that ``torch.save`` wrote, which torch does not; other files have none.

    Raises:
        ValueError: they do not match.
    """
    if _is_zip(path) and not is_whole(path):
        raise ValueError(f"{path} is damaged: its checksums do not match; copy it again, or take another checkpoint")


def is_whole(path: Path) -> bool:
    """Whether a file is a zip, as ``torch.save`` writes it, whose checksums all match; reads all of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile has many for what is no zip, or a damaged one
        return False


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one whose table of contents is damaged
        return True
