"""Losses of classifiers against their equations, in double precision, and the weights of rare classes."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from visionattn.losses.classification import FocalLoss, class_weights, create_criterion, positive_weights

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0], [4.0, 4.0, -4.0], [-1.0, 0.0, 6.0]], dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 1, 2])
LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
WEIGHT = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


def transcribed_softmax(logits: Tensor, gamma: float, weight: Tensor) -> Tensor:
    """Compute equation 4 of Lin et al., 2017, for the class of each image, weighted as torch's cross-entropy is."""
    p = (logits.exp() / logits.exp().sum(1, keepdim=True))[range(len(CLASSES)), CLASSES]
    own = weight[CLASSES]
    return (own * -((1 - p) ** gamma) * p.log()).sum() / own.sum()


def transcribed_sigmoid(logits: Tensor, gamma: float, weight: Tensor) -> Tensor:
    """Compute the same for each class of each image; ``weight`` is that of images with the class."""
    p = 1 / (1 + (-logits).exp())
    there = -weight * (1 - p) ** gamma * p.log()
    return (LABELS * there - (1 - LABELS) * p**gamma * (1 - p).log()).mean()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weight", [torch.ones(3, dtype=torch.float64), WEIGHT], ids=["plain", "weighted"])
def test_focal_loss_and_its_gradient_equal_the_equation(gamma: float, weight: Tensor) -> None:
    logits = LOGITS.clone().requires_grad_()
    for found, expected in (
        (FocalLoss(gamma, weight=weight)(logits, CLASSES), transcribed_softmax(logits, gamma, weight)),
        (FocalLoss(gamma, pos_weight=weight)(logits, LABELS), transcribed_sigmoid(logits, gamma, weight)),
    ):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradient(found, logits), gradient(expected, logits))


def test_focal_loss_of_labels_equals_that_of_torchvision() -> None:
    expected = sigmoid_focal_loss(LOGITS, LABELS, alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(FocalLoss()(LOGITS, LABELS), expected)


def test_focal_loss_without_gamma_is_cross_entropy() -> None:
    for weight in (None, WEIGHT):
        torch.testing.assert_close(FocalLoss(0, weight)(LOGITS, CLASSES), F.cross_entropy(LOGITS, CLASSES, weight))
        expected = F.binary_cross_entropy_with_logits(LOGITS, LABELS, pos_weight=weight)
        torch.testing.assert_close(FocalLoss(0, pos_weight=weight)(LOGITS, LABELS), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_certain_images_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    for target in (torch.tensor([0, 0]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])):
        assert gradient(FocalLoss(gamma)(logits, target), logits).isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_smooths_as_that_of_timm(smoothing: float) -> None:
    expected = LabelSmoothingCrossEntropy(smoothing)(LOGITS, CLASSES)
    torch.testing.assert_close(create_criterion("ce", smoothing=smoothing)(LOGITS, CLASSES), expected)


def test_smoothing_moves_labels_towards_a_half() -> None:
    found = create_criterion("bce", smoothing=0.2)(LOGITS, LABELS)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(LOGITS, 0.8 * LABELS + 0.1))


@pytest.mark.parametrize("loss", ["ce", "bce", "focal"])
def test_weights_of_a_loss_are_not_part_of_a_checkpoint(loss: str) -> None:
    criterion = create_criterion(loss, weight=WEIGHT, pos_weight=WEIGHT)  # type: ignore[arg-type]
    assert list(criterion.buffers())
    assert not criterion.state_dict()
    assert {buffer.device.type for buffer in criterion.to("meta").buffers()} == {"meta"}


def test_class_weights_are_those_of_scikit_learn() -> None:
    counts = [50, 1, 9]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.repeat(np.arange(3), counts))
    torch.testing.assert_close(class_weights(torch.tensor(counts)).double(), torch.tensor(expected), rtol=1e-6, atol=0)


def test_class_without_images_leaves_the_other_weights_alone() -> None:
    weights = class_weights(torch.tensor([50, 0, 1, 9]))
    assert weights[1] == 1
    torch.testing.assert_close(weights[[0, 2, 3]], class_weights(torch.tensor([50, 1, 9])))
    assert positive_weights(torch.tensor([0]), 60).tolist() == [1]


def test_positive_weights_balance_images_with_and_without_a_class() -> None:
    counts = torch.tensor([1, 30, 60, 117])
    weights = positive_weights(counts, 120)
    torch.testing.assert_close(weights[1:] * counts[1:], (120 - counts[1:]).float())
    assert weights[0] == 100, "119 would let one image decide"
    assert positive_weights(torch.tensor([120]), 120).item() == pytest.approx(1 / 100), "such images still count"
