"""Conversion of published NAT, DiNAT and ViT³ checkpoints to safetensors files of this package's layout.

visionattn export convert dinat_tiny_in1k_224.pth dinat_tiny.safetensors --arch dinat_tiny
"""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor

from visionattn.errors import one_line
from visionattn.io import save_weights
from visionattn.models import IsotropicNeighborhoodTransformer, NeighborhoodAttentionTransformer
from visionattn.models._nat_checkpoints import CLASSIFIER, Mapped, fit, map_checkpoint
from visionattn.models._nat_padding import PADDING
from visionattn.suggestions import suggest
from visionattn.training.checkpoints.files import check_whole

FAMILIES = (NeighborhoodAttentionTransformer, IsotropicNeighborhoodTransformer)


def convert(source: Path, target: Path, arch: str) -> list[str]:
    """Write the weights of `source` to `target` as safetensors, under the names of model `arch`.

    The classifier has as many classes as the file's; without one the output has none. Relative bias tables of another
    kernel size than the architecture's are interpolated.

    Returns:
        A report: a line for every tensor, then a summary.

    Raises:
        FileNotFoundError: `source` or the folder of `target` is missing.
        ValueError: `source` is not a checkpoint or does not fit `arch`, `arch` is of another family, or `target`
            does not end in .safetensors. Nothing is written then.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"{target} must end in .safetensors, which is how loaders tell the format")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} to write {target.name} to")
    known = timm.list_models(arch.partition(".")[0])
    if not known:
        raise ValueError(f"unknown architecture {arch!r}{suggest(arch, timm.list_models())}")
    mapped = map_checkpoint(_read(source))
    head = mapped.state_dict.get(CLASSIFIER[0])
    num_classes = 0 if head is None else len(head)
    model = timm.create_model(
        arch, num_classes=num_classes, pretrained_cfg_overlay={"num_classes": num_classes}, device=torch.device("meta")
    )
    if not isinstance(model, FAMILIES):
        raise ValueError(f"--arch {arch} is not a NAT, DiNAT or ViT³ model, whose checkpoints this command knows")  # noqa: TRY004
    try:
        weights, resized = fit(mapped, model)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    save_weights(weights, target, {"format": "pt", "architecture": arch, "num_classes": str(num_classes)})
    return _report(mapped, weights, resized, target)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    check_whole(path)
    try:
        return load_state_dict(str(path), weights_only=True)
    except PermissionError:
        raise
    except Exception as error:
        # A file of another kind fails in whatever way its bytes lead to; timm's own words tell of pickled code.
        reason = f": {one_line(str(error))}" if isinstance(error, RuntimeError) and "weights_only" in str(error) else ""
        raise ValueError(f"{path} is not a checkpoint, or only part of one{reason}") from error


def _report(mapped: Mapped, weights: dict[str, Tensor], resized: list[str], target: Path) -> list[str]:
    lines = []
    for name, sources in mapped.sources.items():
        line = f"{' + '.join(sources)} -> {name} {list(weights[name].shape)}"
        if name in resized:
            line += f", interpolated from {list(mapped.state_dict[name].shape)}"
        lines.append(line)
    lines += [f"{name} -> dropped" for name in mapped.dropped]
    tensors = [value for name, value in weights.items() if name != PADDING]
    parameters = sum(value.numel() for value in tensors) / 1e6
    tables = f", {len(resized)} tables interpolated" if resized else ""
    classifier = "" if CLASSIFIER[0] in weights else ", no classifier"
    padding = (
        [f"{PADDING}: the weights were trained with zeros around maps smaller than a window; models that load them pad"]
        if PADDING in weights
        else []
    )
    return [
        *lines,
        *padding,
        f"{target}: {len(tensors)} tensors, {parameters:.2f} M parameters, from {mapped.layout}{tables}{classifier}",
    ]
