"""Evaluation of classifiers that are fitted to pooled vectors."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from visionattn.probing.features.extraction import PooledKind
from visionattn.probing.features.sources import FeatureSource
from visionattn.probing.heads import ProbingHead
from visionattn.probing.protocols.results import (
    HeadResult,
    Progress,
    SelectedOn,
    check_selected_on,
    check_sources,
    count_hits,
    middle,
)
from visionattn.probing.protocols.split import HELD_OUT, hold_out, usual_pooling

IMAGES = 1024
"""Number of images that are classified at a time."""

Option = dict[str, float]
"""Hyper-parameters by name."""


@dataclass(frozen=True)
class Selection:
    """Choice of hyper-parameters.

    Attributes:
        features: "cls" or "gap", by default the class token if there is one.
        selected_on: Where the choice is made, see `SelectedOn`.
        held_out: Share of train that is held out; the choice is then fitted to all of train.
        seed: Seed of the held-out part.
        device: Device on which vectors are compared and fitted.
    """

    features: PooledKind | None = None
    selected_on: SelectedOn = "held_out"
    held_out: float = HELD_OUT
    seed: int = 0
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        check_selected_on(self.selected_on)


class Classifier(NamedTuple):
    """Fitted classifiers, one for each option.

    Attributes:
        scores: From vectors `[B, dim]` to scores `[options, B, num_classes]`.
        head: From a kind of vectors and the number of an option to a head; None if there is no such head.
    """

    scores: Callable[[Tensor], Tensor]
    head: Callable[[PooledKind, int], ProbingHead] | None = None


Fit = Callable[[Tensor, Tensor, Sequence[Option]], Classifier]
"""From vectors `[n, dim]`, their classes `[n]` and options to classifiers."""


def fit_and_evaluate(
    name: str,
    fit: Fit,
    options: Sequence[Option],
    train: FeatureSource,
    val: FeatureSource,
    num_classes: int,
    selection: Selection,
    progress: Progress | None,
) -> HeadResult:
    """Choose one of the options, fit it to all of train, and evaluate it on val, which is read once, at the end.

    Processes of torch.distributed share the images of val.

    Args:
        name: Name of the protocol.
        fit: The protocol.
        options: Options to choose from; among equally good ones the first is taken.
        train: Features to fit to.
        val: Features to evaluate on.
        num_classes: Number of classes.
        selection: How to choose, and which vectors to take.
        progress: Called with the number of images of val that are classified, and of all of val.

    Raises:
        ValueError: Features or classes of train and val do not fit together, or there are no options.
    """
    start = time.perf_counter()
    check_sources(train, val, num_classes)
    if not options:
        raise ValueError(f"{name} has no hyper-parameters to choose from; name at least one of each")
    kind = selection.features or usual_pooling(train)
    vectors, targets = train.pooled(kind).to(selection.device), train.targets.to(selection.device)
    selected_on = selection.selected_on if len(options) > 1 else None
    accuracy = None
    if selected_on == "held_out":
        rest, held = (part.to(selection.device) for part in hold_out(train.targets, selection.held_out, selection.seed))
        rates = _rates(fit(vectors[rest], targets[rest], options).scores, vectors[held], targets[held])
        best = int(rates[:, 0].argmax())
        options, accuracy = [options[best]], float(rates[best, 0])
    elif selected_on == "fixed":
        options = [{key: middle(list(dict.fromkeys(option[key] for option in options))) for key in options[0]}]
    classifier = fit(vectors, targets, options)
    seconds = time.perf_counter() - start
    queries, labels = val.pooled(kind).to(selection.device), val.targets.to(selection.device)
    rates = _rates(classifier.scores, queries, labels, progress)
    best = int(rates[:, 0].argmax())
    head = classifier.head(kind, best).cpu().eval() if classifier.head else None
    return HeadResult(
        name=name,
        options={"features": kind, **options[best]},
        num_parameters=sum(parameter.numel() for parameter in head.parameters()) if head else 0,
        top1=float(rates[best, 0]),
        top5=float(rates[best, 1]),
        selected_on=selected_on,
        held_out_accuracy=accuracy,
        seconds=seconds,
        head=head,
    )


def grid(**values: Sequence[float]) -> list[Option]:
    """Return every combination of values, the last varying fastest; raise a ValueError if one is not above 0."""
    options: list[Option] = [{}]
    for name, choices in values.items():
        for value in choices:
            if not value > 0:
                raise ValueError(f"{name} must be above 0; got {value}")
        options = [{**option, name: value} for option in options for value in choices]
    return options


def _rates(
    scores: Callable[[Tensor], Tensor], queries: Tensor, targets: Tensor, progress: Progress | None = None
) -> Tensor:
    """Return top-1 and top-5 of each option, `[options, 2]`."""
    together = dist.is_available() and dist.is_initialized()
    rank, processes = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    # An empty share still says how many options there are.
    hits = torch.zeros(len(scores(queries[:1])), 2, dtype=torch.long, device=queries.device)
    for start in range(rank * IMAGES, len(queries), processes * IMAGES):
        part = slice(start, start + IMAGES)
        hits += count_hits(scores(queries[part]), targets[part])
        if progress is not None:
            progress(min(start + IMAGES, len(queries)), len(queries))
    if together:
        dist.all_reduce(hits)
    return hits.double() / len(queries)
