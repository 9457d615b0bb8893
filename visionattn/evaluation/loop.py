"""The loop of every evaluation: show each image to a model once, and time it."""

import time
from collections.abc import Callable
from dataclasses import fields
from operator import length_hint
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from visionattn.data.module import ImageData
from visionattn.evaluation.device import Precision, autocast
from visionattn.progress import ShowProgress, no_progress

NAMED_UNREADABLE = 20
"""Unreadable images that a result names."""

Output = TypeVar("Output")


class Timing(NamedTuple):
    """The number of images and the seconds that they took, loading included."""

    num_images: int
    seconds: float


class Result:
    """Base of results: dataclasses whose ``repr`` shows their figures, and hides tensors and data sets."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, as ``eval.py --output`` writes them."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.repr}  # type: ignore[arg-type]


def evaluate(
    model: Callable[[Tensor], Output],
    data: ImageData,
    update: Callable[[Output, Any], object],
    *,
    name: str,
    device: torch.device,
    precision: Precision = "32-true",
    progress: ShowProgress = no_progress,
    noun: str = "image",
) -> Timing:
    """Show the validation split to a model, batch by batch.

    Args:
        model: called with normalised images ``[B, C, H, W]`` on the device, in inference mode.
        data: after ``setup``; unreadable images are left out of its batches.
        update: called with the model's output and the batch.
        name: of the model, for the progress.
        device: where the model is.
        precision: of the model.
        progress: shows the number of batches.
        noun: what the data consist of.

    Raises:
        ValueError: not one image can be read.
    """
    start, num_images = time.perf_counter(), 0
    loader = data.val_dataloader()
    with progress(f"evaluating {name}", "batches") as report:
        for number, batch in enumerate(loader, 1):
            if len(batch.image):
                with torch.inference_mode(), autocast(device, precision):
                    output = model(batch.image.to(device, non_blocking=True))
                update(output, batch)
                num_images += len(batch.image)
            report(number, length_hint(loader) or None)  # the length of a stream is unknown
    if not num_images:
        first = (data.broken("validation") or ["the split is empty"])[0]
        raise ValueError(f"not one {noun} could be read: {first}")
    return Timing(num_images, time.perf_counter() - start)


def describe_run(data: ImageData, timing: Timing, batch_size: int, precision: Precision) -> dict[str, Any]:
    """Return the last fields of a result: unreadable images, speed and preprocessing."""
    unreadable = data.broken("validation")
    return {
        "num_unreadable": len(unreadable),
        "unreadable": unreadable[:NAMED_UNREADABLE],
        "images_per_second": timing.num_images / timing.seconds,
        "seconds": timing.seconds,
        "batch_size": batch_size,
        "precision": precision,
        "preprocessing": data.preprocessing,
    }
