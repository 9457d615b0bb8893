"""What protocols report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from visionattn.probing.features.sources import FeatureSource
from visionattn.probing.heads import ProbingHead

SelectedOn = Literal["held_out", "val", "fixed"]
"""Where a choice is made: on a part of train that is held out; on val itself, as papers do; or nowhere: the middle of
the values there are to choose from is taken, and the last epoch, as for one image per class, of which none can be
held out."""

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with the number of steps that are done, and of all."""


@dataclass(frozen=True)
class HeadResult:
    """How well a head classifies; rates are fractions.

    Attributes:
        name: Of the head or of the protocol: ep_32, knn, ridge, …
        options: Of the head, or what the protocol chose.
        num_parameters: Trained parameters, classifier included.
        top1: Share of val whose class comes first.
        top5: Share of val whose class is among the first five, or among all where there are fewer.
        selected_on: Where options, rate and epoch were chosen (`SelectedOn`); None where there was nothing to choose.
        held_out_accuracy: Top-1 of the choice on the part of train that was held out.
        seconds: Wall time of training; of heads that train together, that of all while this one took part.
        lr: Peak learning rate.
        epoch: Epoch that the weights come from, counted from 1; 0 where none gave a finite loss.
        optimizer: Name of the optimizer.
        weight_decay: Of the optimizer.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return asdict(self)


def check_selected_on(name: str) -> None:
    """Check a name; raises a ValueError."""
    if name not in get_args(SelectedOn):
        raise ValueError(f"selected_on must be {', '.join(map(repr, get_args(SelectedOn)))}; got {name!r}")


def middle(values: Sequence[T]) -> T:
    """Return the value in the middle, of two the first: the fixed choice."""
    return values[(len(values) - 1) // 2]


class Probe(NamedTuple):
    """A result and, unless it is k-NN's, the head that achieved it, on the CPU and in evaluation mode."""

    result: HeadResult
    head: ProbingHead | None = None


def count_hits(scores: Tensor, targets: Tensor) -> Tensor:
    """How many of B images have their class at the first place, and among the first five.

    Args:
        scores: `[..., B, num_classes]`; -inf is no answer, and neither is nan.
        targets: `[B]`.

    Returns:
        `[..., 2]`, int64; where there are five classes or fewer, every answer is among the first five.
    """
    first = scores.topk(min(5, scores.shape[-1]))
    found = (first.indices == targets[:, None]) & (first.values > -torch.inf)
    return torch.stack([found[..., 0], found.any(-1)], -1).sum(-2)


def check_sources(train: FeatureSource, val: FeatureSource, num_classes: int) -> None:
    """Raises a ValueError unless two sources have features of the same form, and train has no class beyond the last.

    Of val nothing is read but the form of its features.
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
