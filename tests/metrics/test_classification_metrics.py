"""Metrics of classifiers against scikit-learn's and against a sort by hand; classes without images do not count."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from visionattn.metrics.classification import BalancedAccuracy, MacroF1, MeanAveragePrecision


@pytest.fixture
def labels() -> Tensor:
    """Return rare and frequent labels of 60 images; none has the third."""
    torch.manual_seed(0)
    return (torch.rand(60, 5) < torch.tensor([0.05, 0.5, 0.0, 0.2, 0.9])).float()


def brute_force(probability: Tensor, label: Tensor) -> float:
    """Average the precision at each image of a class, from the most probable one on, without ties."""
    ranked = [bool(label[index]) for index in sorted(range(len(label)), key=lambda index: -probability[index])]
    precisions = [sum(ranked[: place + 1]) / (place + 1) for place, hit in enumerate(ranked) if hit]
    return sum(precisions) / len(precisions)


def test_balanced_accuracy_equals_that_of_scikit_learn() -> None:
    torch.manual_seed(0)
    target = torch.tensor([0] * 30 + [1] * 5 + [3] * 2)
    logits = torch.randn(37, 5) + 2 * torch.nn.functional.one_hot(target, 5)
    assert 2 in logits.argmax(1), "a class without images is predicted"
    metric = BalancedAccuracy(5)
    for part in torch.arange(37).split(10):
        metric.update(logits[part], target[part])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        expected = balanced_accuracy_score(target, logits.argmax(1))
    assert metric.compute().item() == pytest.approx(expected)
    assert multiclass_accuracy(logits, target, 5, average="macro").item() < expected - 0.1, "counts a class too many"


def test_mean_average_precision_equals_brute_force(labels: Tensor) -> None:
    probability = torch.rand(60, 5)
    metric = MeanAveragePrecision(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in torch.arange(60).split(7):
            metric.update(probability[part], labels[part])
        found = metric.compute()
    occur = [0, 1, 3, 4]
    by_hand = [brute_force(probability[:, k], labels[:, k]) for k in occur]
    assert found.item() == pytest.approx(np.mean(by_hand))
    assert metric.per_class()[occur].tolist() == pytest.approx(by_hand)
    assert metric.per_class()[2].isnan()


def test_average_precision_with_ties_equals_that_of_scikit_learn(labels: Tensor) -> None:
    probability = (10 * torch.rand(60, 5)).round() / 10
    metric = MeanAveragePrecision(5)
    metric.update(probability, labels)
    expected = np.mean([average_precision_score(labels[:, k], probability[:, k]) for k in (0, 1, 3, 4)])
    assert metric.compute().item() == pytest.approx(expected)


def test_mean_average_precision_keeps_five_bytes_per_image_and_class(labels: Tensor) -> None:
    metric = MeanAveragePrecision(5)
    metric.update(torch.rand(60, 5), labels)
    assert sum(kept.element_size() for kept in metric.seen()) == 5


def test_macro_f1_equals_the_mean_of_classes_that_occur(labels: Tensor) -> None:
    probability = (0.4 * torch.rand(60, 5) + 0.4 * labels).clamp(0, 1)
    metric = MacroF1(5)
    metric.update(probability, labels)
    expected = np.mean([f1_score(labels[:, k], probability[:, k] > 0.5) for k in (0, 1, 3, 4)])
    assert metric.compute().item() == pytest.approx(expected)
