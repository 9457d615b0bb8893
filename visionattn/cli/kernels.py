"""``eval.py kernels``: the hyper-kernels of a model, as an image and in figures."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionattn.cli.report import print_table
from visionattn.evaluation.source import ModelSource
from visionattn.output import check_writable, write_json
from visionattn.training import Weights
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

    The slow networks of Terminator compute these kernels from coordinates, independently of the input.

    Args:
        output: file of the image, .png, .pdf or .svg.
        checkpoint: file that train.py wrote; together with --model also a plain state dict or .safetensors file.
        model: name of a registered model; without a checkpoint its weights are random.
        model_kwargs: further arguments for the model, such as {"num_classes": 10}.
        weights: for a checkpoint that holds a moving average: the average or the raw weights.
        channels: maximum number of channels per kernel, evenly spaced.
        statistics: JSON file for the shape, mean, standard deviation and bounds of each kernel.
    """
    check_writable(output, statistics)
    check_suffix(output)
    network, spec, origin = ModelSource(checkpoint, model, False, model_kwargs, weights).load()
    hyper_kernels = getattr(network, "hyper_kernels", None)
    if hyper_kernels is None:
        raise ValueError(f"{spec.model} has no hyper-kernels: only models that make their own kernels can be drawn")
    with torch.inference_mode():
        found: dict[str, Tensor] = {name: kernel.float().cpu() for name, kernel in hyper_kernels().items()}
    save_contact_sheet(found, output, channels)
    rows = {name: _describe(kernel) for name, kernel in found.items()}
    if statistics:
        source = {"model": spec.model, "checkpoint": origin.checkpoint}
        write_json({**source, "kernels": rows, **provenance(torch.device("cpu"))}, statistics)
    print_table([{"kernel": name} | {key: _text(value) for key, value in row.items()} for name, row in rows.items()])


def _describe(kernel: Tensor) -> dict[str, Any]:
    figures = {"mean": kernel.mean(), "std": kernel.std(correction=0), "min": kernel.min(), "max": kernel.max()}
    return {"shape": list(kernel.shape)} | {key: value.item() for key, value in figures.items()}


def _text(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, list) else f"{value:.4g}"
