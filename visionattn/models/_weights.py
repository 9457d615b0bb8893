"""Weights that come with the package, in `weights/MODEL.TAG`, folders as `visionattn export hub` writes them."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

FOLDER = Path(__file__).with_name("weights")
CHECKSUMS = FOLDER / "SHA256SUMS"
"""A line `DIGEST  PATH` for each file of weights, as the command `sha256sum` writes it."""

StateDict = dict[str, Tensor]


def packaged(name: str) -> dict[str, str]:
    """The part of timm's configuration that says where the weights of `MODEL.TAG` are."""
    return {"file": str(FOLDER / name / "model.safetensors")}


def checked(filter_fn: Callable[[Any, Any], StateDict] | None = None) -> Callable[[StateDict, nn.Module], StateDict]:
    """What timm calls with weights before it loads them: compares those of the package with their checksum.

    Args:
        filter_fn: adapts the weights to the model.
    """

    def check_and_filter(state_dict: StateDict, model: nn.Module) -> StateDict:
        path = Path((getattr(model, "pretrained_cfg", None) or {}).get("file") or "")
        if path.is_relative_to(FOLDER):
            check(path)
        return state_dict if filter_fn is None else filter_fn(state_dict, model)

    return check_and_filter


def check(path: Path) -> None:
    """Compares a file of the package with its checksum.

    Raises:
        ValueError: it is not what was packaged.
    """
    lines = CHECKSUMS.read_text(encoding="utf-8").splitlines()
    digests = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    if hashlib.sha256(path.read_bytes()).hexdigest() != digests.get(path.relative_to(FOLDER).as_posix()):
        raise ValueError(f"{path} is damaged: it has another checksum than {CHECKSUMS} says; install visionattn again")
