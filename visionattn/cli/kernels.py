"""Images of the kernels that a model makes itself."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionattn.cli.classify import build_classifier
from visionattn.cli.report import check_writable, print_table, write_json
from visionattn.tasks.checkpoint import Weights
from visionattn.viz.contact_sheet import CHANNELS, save_contact_sheet
from visionattn.viz.figure import check_suffix
from visionattn_kernels.provenance import provenance


def kernels(
    output: Path,
    checkpoint: Path | None = None,
    model: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    channels: int = CHANNELS,
    statistics: Path | None = None,
) -> None:
    """Draw the hyper-kernels of each block of a model as a contact sheet.

    These are the kernels that the slow networks of Terminator make from coordinates, whatever the input.

    Args:
        output: file of the image, .png, .pdf or .svg.
        checkpoint: file that train.py wrote; together with --model also a plain state dict or .safetensors file.
        model: name of a registered model; without a checkpoint it is drawn as initialised.
        model_kwargs: further arguments for the model, such as {"num_classes": 10}.
        weights: of a checkpoint that holds a moving average, that average or the raw weights.
        channels: drawn at most of each kernel, evenly spaced.
        statistics: JSON file for shape, mean, standard deviation and bounds of each kernel.

    Raises:
        UsageError: neither checkpoint nor model.
        ValueError: a model or checkpoint that is not there or has no hyper-kernels.
    """
    check_writable(output, statistics)
    check_suffix(output)
    classifier, spec = build_classifier(checkpoint, model, False, model_kwargs or {}, weights)
    hyper_kernels = getattr(classifier, "hyper_kernels", None)
    if hyper_kernels is None:
        raise ValueError(f"{spec.model} has no hyper-kernels: only models that make their own kernels can be drawn")
    with torch.inference_mode():
        found: dict[str, Tensor] = {name: kernel.float().cpu() for name, kernel in hyper_kernels().items()}
    save_contact_sheet(found, output, channels)
    rows = {name: _describe(kernel) for name, kernel in found.items()}
    if statistics:
        source = {"model": spec.model, "checkpoint": None if checkpoint is None else str(checkpoint)}
        write_json({**source, "kernels": rows, **provenance(torch.device("cpu"))}, statistics)
    print_table([{"kernel": name} | {key: _text(value) for key, value in row.items()} for name, row in rows.items()])


def _describe(kernel: Tensor) -> dict[str, Any]:
    figures = {"mean": kernel.mean(), "std": kernel.std(correction=0), "min": kernel.min(), "max": kernel.max()}
    return {"shape": list(kernel.shape)} | {key: value.item() for key, value in figures.items()}


def _text(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, list) else f"{value:.4g}"
