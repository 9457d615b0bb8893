"""The loop of every evaluation: show each image to a model once, and time it."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from operator import length_hint
from typing import Any, TypeVar

import torch
from torch import Tensor

from visionattn.data.module import ImageData
from visionattn.evaluation.as_trained import DataOptions
from visionattn.evaluation.device import Precision, autocast
from visionattn.evaluation.source import Origin
from visionattn.progress import ShowProgress

NAMED_UNREADABLE = 20
"""Unreadable images that a result names."""

Output = TypeVar("Output")


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """Result of an evaluation: figures, and the data set for drawings, which like all large fields has no ``repr``.

    Attributes:
        model: name of the architecture.
        checkpoint: its file, if there is one.
        weights: where they come from, see `Origin`.
        dataset: name of the data set.
        root: its folder, as given.
        num_images: images that could be read.
        num_unreadable: images that were left out.
        unreadable: the first 20 of them, with the reason.
        images_per_second: loading included.
        seconds: the same.
        batch_size: images per step.
        precision: of the model.
        preprocessing: of the images.
        data: the data set.
    """

    model: str
    checkpoint: str | None
    weights: str
    dataset: str
    root: str | None
    num_images: int
    num_unreadable: int
    unreadable: list[str]
    images_per_second: float
    seconds: float
    batch_size: int
    precision: Precision
    preprocessing: dict[str, Any]
    data: Any = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, as ``eval.py --output`` writes them."""
        return {figure.name: getattr(self, figure.name) for figure in fields(self) if figure.repr}


def evaluate(
    model: Callable[[Tensor], Output],
    data: ImageData,
    update: Callable[[Output, Any], object],
    name: str,
    origin: Origin,
    options: DataOptions,
    *,
    device: torch.device,
    precision: Precision,
    progress: ShowProgress,
) -> dict[str, Any]:
    """Show the validation split to a model, batch by batch, and return the fields of a `Result`.

    The model gets normalised images ``[B, C, H, W]`` on the device, in inference mode. ``update`` gets its output and
    the batch, without images that cannot be read.

    Raises:
        ValueError: not one image can be read.
    """
    start, num_images = time.perf_counter(), 0
    loader = data.val_dataloader()
    total = length_hint(loader) or None  # the length of a stream is unknown
    with progress(f"evaluating {name}", "batches") as report:
        for number, batch in enumerate(loader, 1):
            if len(batch.image):
                with torch.inference_mode(), autocast(device, precision):
                    output = model(batch.to(device).image)
                update(output, batch)
                num_images += len(batch.image)
            report(number, total)
    seconds, unreadable = time.perf_counter() - start, data.broken("validation")
    if not num_images:
        raise ValueError(f"not one image could be read: {(unreadable or ['the split is empty'])[0]}")
    return {
        "model": name,
        **asdict(origin),
        "dataset": data.name,
        "root": options.root,
        "num_images": num_images,
        "num_unreadable": len(unreadable),
        "unreadable": unreadable[:NAMED_UNREADABLE],
        "images_per_second": num_images / seconds,
        "seconds": seconds,
        "batch_size": options.batch_size,
        "precision": precision,
        "preprocessing": data.preprocessing,
        "data": data,
    }
