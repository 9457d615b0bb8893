"""The loop of every evaluation: show each image to a model once, and time it."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from operator import length_hint
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from visionattn.data.module import ImageData
from visionattn.evaluation.device import Precision, autocast
from visionattn.evaluation.source import Origin
from visionattn.progress import ShowProgress, no_progress

NAMED_UNREADABLE = 20
"""Unreadable images that a result names."""

Output = TypeVar("Output")


class Timing(NamedTuple):
    """The number of images and the seconds that they took, loading included."""

    num_images: int
    seconds: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """Result of an evaluation: figures, and the data set for drawings, which like all large fields has no ``repr``.

    Attributes:
        model: name of the architecture.
        checkpoint: its file, if there is one.
        weights: where they come from, see `Origin`.
        dataset: name of the data set.
        root: its folder, as given.
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
    num_unreadable: int
    unreadable: list[str]
    images_per_second: float
    seconds: float
    batch_size: int
    precision: Precision
    preprocessing: dict[str, Any]
    data: Any = field(repr=False)

    KEYS: ClassVar[tuple[str, ...]] = ()
    """Figures of a kind of evaluation, in their order."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, as ``eval.py --output`` writes them."""
        return {key: getattr(self, key) for key in (*self.KEYS, *OF_ALL)}


OF_ALL = (
    "num_unreadable", "unreadable", "images_per_second", "seconds", "batch_size", "precision", "preprocessing"
)  # fmt: skip
"""Figures of every kind of evaluation, which come last."""


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
    total = length_hint(loader) or None  # the length of a stream is unknown
    with progress(f"evaluating {name}", "batches") as report:
        for number, batch in enumerate(loader, 1):
            if len(batch.image):
                with torch.inference_mode(), autocast(device, precision):
                    output = model(batch.image.to(device, non_blocking=True))
                update(output, batch)
                num_images += len(batch.image)
            report(number, total)
    if not num_images:
        first = (data.broken("validation") or ["the split is empty"])[0]
        raise ValueError(f"not one {noun} could be read: {first}")
    return Timing(num_images, time.perf_counter() - start)


def describe(
    model: str, origin: Origin, data: Any, options: Any, timing: Timing, precision: Precision
) -> dict[str, Any]:
    """Return the fields of a `Result`."""
    unreadable = data.broken("validation")
    return {
        "model": model,
        **asdict(origin),
        "dataset": data.name,
        "root": options.root,
        "num_unreadable": len(unreadable),
        "unreadable": unreadable[:NAMED_UNREADABLE],
        "images_per_second": timing.num_images / timing.seconds,
        "seconds": timing.seconds,
        "batch_size": options.batch_size,
        "precision": precision,
        "preprocessing": data.preprocessing,
        "data": data,
    }
