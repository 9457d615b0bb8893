"""Metrics of classifiers, most of which count rare classes as much as frequent ones.

A mean over classes leaves out those of which there is no image; torchmetrics counts some of them as 0.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassStatScores,
    MultilabelAveragePrecision,
    MultilabelF1Score,
    MultilabelStatScores,
)
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat


class BalancedAccuracy(MulticlassStatScores):
    """Balanced top-1 accuracy of logits [B, K] and class indices [B]: mean recall of the classes that occur."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average=None, validate_args=False)

    def compute(self) -> Tensor:
        """Return the balanced accuracy."""
        hits, _, _, _, images = super().compute().unbind(-1)
        return (hits / images)[images > 0].mean()


class MacroF1(MultilabelStatScores):
    """Mean F1, at a threshold of 0.5, of the classes that occur, for probabilities and labels [B, K]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average=None, validate_args=False)

    def compute(self) -> Tensor:
        """Return the mean F1."""
        hits, wrong, _, missed, images = super().compute().unbind(-1)
        return (2 * hits / (2 * hits + wrong + missed))[images > 0].mean()


class MeanAveragePrecision(MultilabelAveragePrecision):
    """Mean average precision (mAP) of the classes that occur, for probabilities and labels [B, K].

    It is exact: it keeps every probability and label, 5 bytes per image and class, until the end of the epoch.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average=None, thresholds=None, validate_args=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch, which may be empty."""
        self.preds.append(preds)
        self.target.append(target.to(torch.uint8))

    def per_class(self) -> Tensor:
        """Return the average precision of each class [K], NaN if it does not occur."""
        probability, label = self.seen()
        occurs = label.sum(0) > 0
        found = probability.new_full((self.num_labels,), torch.nan)
        if occurs.any():
            kept: dict[str, Any] = {"num_labels": int(occurs.sum()), "average": None, "validate_args": False}
            found[occurs] = multilabel_average_precision(probability[:, occurs], label[:, occurs], **kept)
        return found

    def compute(self) -> Tensor:  # type: ignore[override]  # torchmetrics declares that of curves
        """Return the mean average precision."""
        return self.per_class().nanmean()

    def seen(self) -> tuple[Tensor, Tensor]:
        """Return all probabilities and labels so far [N, K]."""
        return dim_zero_cat(self.preds), dim_zero_cat(self.target)


def create_metrics(num_classes: int, multi_label: bool) -> dict[str, Metric]:
    """Return the metrics of a training by name, of logits and class indices, or of probabilities and several labels."""
    if multi_label:
        return {
            "map": MeanAveragePrecision(num_classes),
            "f1": MacroF1(num_classes),
            "f1_micro": MultilabelF1Score(num_classes, average="micro", validate_args=False),
        }
    return {
        "top1": MulticlassAccuracy(num_classes, top_k=1, average="micro"),
        "top5": MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro"),
        "balanced_top1": BalancedAccuracy(num_classes),
    }
