"""Results of protocols."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from visionattn.probing.features.sources import FeatureSource
from visionattn.probing.heads import ProbingHead

SelectedOn = Literal["held_out", "val", "fixed"]
"""Place of a choice: on a held-out part of train; on val itself, as papers do; or nowhere. Then the choice is the
middle value and the last epoch, as for one image per class, where none can be held out."""

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with the number of steps that are done and the number of all."""


@dataclass(frozen=True)
class HeadResult:
    """Accuracy of a head, and the head; rates are fractions.

    Attributes:
        name: Head or protocol: ep_32, knn, ridge, …
        options: Options of the head, or the values that the protocol chose.
        num_parameters: Trained parameters, classifier included.
        top1: Share of val whose class comes first.
        top5: Share of val whose class is among the first five (among all, if there are fewer).
        selected_on: Where options, rate and epoch were chosen (`SelectedOn`); None if there was nothing to choose.
        held_out_accuracy: Top-1 of the choice on the held-out part of train.
        seconds: Wall time of training; for heads that train together, the time of all until this one stopped.
        lr: Peak learning rate.
        epoch: Epoch of the weights, counted from 1; 0 if no epoch had a finite loss.
        optimizer: Name of the optimizer; None for protocols that fit without steps.
        weight_decay: Weight decay of the optimizer.
        head: The trained head, on the CPU and in evaluation mode; None for k-NN and in summaries of few-shot draws.
    """

    name: str
    options: Mapping[str, Any]
    num_parameters: int
    top1: float
    top5: float
    selected_on: SelectedOn | None
    held_out_accuracy: float | None
    seconds: float
    lr: float | None = None
    epoch: int | None = None
    optimizer: str | None = None
    weight_decay: float | None = None
    head: ProbingHead | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the head."""
        values = asdict(replace(self, head=None))
        del values["head"]
        return values


def check_selected_on(name: str) -> None:
    """Raise a ValueError unless the name is a `SelectedOn`."""
    if name not in get_args(SelectedOn):
        raise ValueError(f"selected_on must be {', '.join(map(repr, get_args(SelectedOn)))}; got {name!r}")


def middle(values: Sequence[T]) -> T:
    """Return the middle value, the first of two: the fixed choice."""
    return values[(len(values) - 1) // 2]


def count_hits(scores: Tensor, targets: Tensor) -> Tensor:
    """Count the images whose class comes first, and those whose class is among the first five: `[..., 2]`, int64.

    Scores are `[..., B, num_classes]`, where -inf and nan count as no answer, and targets `[B]`. With five classes or
    fewer, every answer is among the first five.
    """
    first = scores.topk(min(5, scores.shape[-1]))
    found = (first.indices == targets[:, None]) & (first.values > -torch.inf)
    return torch.stack([found[..., 0], found.any(-1)], -1).sum(-2)


def check_sources(train: FeatureSource, val: FeatureSource, num_classes: int) -> None:
    """Raise a ValueError unless both sources have features of one form, and the classes of train exist.

    Only the form of val's features is read.
    """
    for name in ("dim", "num_prefix_tokens", "num_reg_tokens"):
        forms = getattr(train, name), getattr(val, name)
        if forms[0] != forms[1]:
            raise ValueError(
                f"{name} of train is {forms[0]} and of val {forms[1]}; extract both with the same backbone"
            )
    if not len(train):
        raise ValueError("train has no images")
    low, high = int(train.targets.min()), int(train.targets.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"classes of train must be 0 to {num_classes - 1}; got {low} to {high}; raise num_classes")
