"""Thresholds of labels: the probability from which an image of several labels gets one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionattn.checks import check_range
from visionattn.data.sources import some
from visionattn.errors import UsageError
from visionattn.training.predictions import THRESHOLD as THRESHOLD

EXPECTED = "a file that classify --save_thresholds wrote"


def best_thresholds(probability: Tensor, label: Tensor) -> Tensor:
    """Return the threshold of each class [K] with the highest F1 on these images, or 0.5 for classes without images.

    Args:
        probability: probabilities [N, K].
        label: whether each image has each label [N, K].
    """
    columns = zip(probability.cpu().numpy().T, label.cpu().numpy().T, strict=True)
    best = [_best_threshold(*column) if column[1].any() else THRESHOLD for column in columns]
    return torch.tensor(best, dtype=torch.float64)


def _best_threshold(probability: Any, label: Any) -> float:
    from sklearn.metrics import precision_recall_curve  # slow to import

    precision, recall, thresholds = precision_recall_curve(label, probability)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1[:-1].argmax())
    # Half-way to the next lower probability, which rounding may not reach.
    below = float(thresholds[best - 1]) if best else 0.0
    return (float(thresholds[best]) + below) / 2


def read_thresholds(given: float | str | Path, class_names: Sequence[str]) -> Tensor:
    """Return the threshold of each class [K].

    Args:
        given: one number for all classes, or a JSON file with a number for each class by its name, as
            ``eval.py classify --save_thresholds FILE`` writes it.
        class_names: names of the classes.

    Raises:
        UsageError: a number outside of [0, 1], or a file that is missing, is no such file or lacks a class.
    """
    if not isinstance(given, str | Path):
        check_range("threshold", given, 0, 1, error=UsageError)
        return torch.full((len(class_names),), float(given), dtype=torch.float64)
    try:
        content: Any = json.loads(Path(given).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise UsageError(f"--threshold: cannot read {given}: {reason}; give a number, or {EXPECTED}") from error
    if not isinstance(content, Mapping) or not all(_is_share(value) for value in content.values()):
        raise UsageError(f"--threshold {given} has no numbers from 0 to 1 by class: give a number, or {EXPECTED}")
    if missing := [name for name in class_names if name not in content]:
        raise UsageError(f"--threshold {given} has no threshold of {some(missing)}: it was written for another model")
    return torch.tensor([content[name] for name in class_names], dtype=torch.float64)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
