"""Average precision and F1 of a classifier with several labels per image."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_stat_scores

from visionattn.evaluation.as_trained import ImageOptions
from visionattn.evaluation.classification import AS_TRAINED, ClassifierResult, require_classes, show_images
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.source import LoadedModel
from visionattn.evaluation.thresholds import best_thresholds, read_thresholds
from visionattn.metrics.classification import MeanAveragePrecision
from visionattn.progress import ShowProgress, no_progress
from visionattn.training.branches import Inference
from visionattn.training.predictions import THRESHOLD


@dataclass(frozen=True, eq=False, kw_only=True)
class MultiLabelResult(ClassifierResult):
    """Average precision and F1 of a classifier on a split; more in `ClassifierResult` and `Result`.

    Means over classes leave out those that no image has.

    Attributes:
        map: mean average precision.
        f1: mean F1 of the classes, at their thresholds.
        f1_micro: F1 of all labels together.
        per_class: a row for each class: ``class``, ``num_images``, ``average_precision``, ``precision``, ``recall``,
            ``f1``, the ``threshold`` of these, and the ``best_threshold``, which has the highest F1 on these images; on
            other images it does less well. Without images of the class it is 0.5. A share of nothing is None.
    """

    map: float
    f1: float
    f1_micro: float


def evaluate_labels(
    loaded: LoadedModel,
    options: ImageOptions = AS_TRAINED,
    *,
    threshold: float | str | Path = THRESHOLD,
    inference: Inference | None = None,
    device: str | torch.device = "auto",
    precision: Precision = "32-true",
    channels_last: bool = False,
    progress: ShowProgress = no_progress,
    announce: Callable[[str], object] | None = None,
) -> MultiLabelResult:
    """Evaluate average precision and F1 of a classifier with several labels per image.

    Average precision is exact: all probabilities stay in memory, with the labels 5 bytes per image and class.

    Args:
        loaded: the classifier; it is moved to the device.
        options: images; data set and preprocessing are by default those of the training.
        threshold: probability from which an image gets a label: of all classes, or a file, see `read_thresholds`.
        inference: for DCAL models, use both branches (``combined``) or self-attention only (``sa``).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        precision: as Lightning's Trainer names it.
        channels_last: lay tensors out in channels-last memory format.
        progress: shows the number of batches.
        announce: called with one line that says how images are prepared, before the first one.

    Raises:
        ValueError: a model without classes, with random weights or with one label per image, thresholds or data that
            are missing or do not fit, logits that are not finite.
    """
    require_classes(loaded)
    spec = loaded.spec
    if not spec.multi_label:
        raise ValueError(f"{loaded.name} has one label for an image: evaluate_classifier evaluates it")
    names = spec.class_names or [str(index) for index in range(spec.num_classes)]
    thresholds = read_thresholds(threshold, names)
    metric = MeanAveragePrecision(spec.num_classes)  # on the CPU

    def update(logits: Tensor, target: Tensor) -> None:
        metric.update(logits.sigmoid().cpu(), target.cpu())

    about = show_images(
        loaded,
        options,
        update,
        inference=inference,
        device=resolve_device(device),
        precision=precision,
        channels_last=channels_last,
        progress=progress,
        announce=announce,
    )
    probability, label = metric.seen()
    if not label.any():
        raise ValueError(f"no image of {about['dataset']} has a label: choose a split that has labels")
    counts = _count(probability, label, thresholds)
    rows = [
        {"class": name, **figures, "threshold": threshold, "best_threshold": best}
        for name, figures, threshold, best in zip(
            about["class_names"],
            _figures(counts, metric.per_class()),
            thresholds.tolist(),
            best_thresholds(probability, label).tolist(),
            strict=True,
        )
    ]
    occur = [row for row in rows if row["num_images"]]
    hits, wrong, _, missed, _ = counts.sum(0).tolist()
    return MultiLabelResult(
        **about,
        map=_mean([row["average_precision"] for row in occur]),
        f1=_mean([row["f1"] for row in occur]),
        f1_micro=_f1(hits, wrong, missed) or 0.0,
        per_class=rows,
    )


def _count(probability: Tensor, label: Tensor, thresholds: Tensor) -> Tensor:
    """Return true and false positives, true and false negatives, and the number of images of each class [K, 5]."""
    given = (probability >= thresholds).int()
    options: dict[str, Any] = {"num_labels": len(thresholds), "average": None, "validate_args": False}
    return multilabel_stat_scores(given, label, **options)


def _figures(counts: Tensor, average_precision: Tensor) -> list[dict[str, Any]]:
    return [
        {
            "num_images": images,
            "average_precision": precision if images else None,
            "precision": hits / (hits + wrong) if hits + wrong else None,
            "recall": hits / images if images else None,
            "f1": _f1(hits, wrong, missed),
        }
        for (hits, wrong, _, missed, images), precision in zip(counts.tolist(), average_precision.tolist(), strict=True)
    ]


def _f1(hits: int, wrong: int, missed: int) -> float | None:
    return 2 * hits / (2 * hits + wrong + missed) if hits + wrong + missed else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
