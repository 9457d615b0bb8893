"""The batch-hard triplet loss against its equation, image by image."""

import math

import pytest
import torch
from torch import Tensor

from visionattn.losses.triplet import BatchHardTripletLoss


def transcribed(features: Tensor, target: Tensor) -> float:
    """Compute equation 5 of Hermans et al., 2017, with the soft margin."""
    losses = []
    for x, label in zip(features, target, strict=True):
        distance = [math.dist(x.tolist(), y.tolist()) for y in features]
        hardest = max(d for d, other in zip(distance, target, strict=True) if other == label)
        nearest = min(d for d, other in zip(distance, target, strict=True) if other != label)
        losses.append(math.log1p(math.exp(hardest - nearest)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_triplet_loss_equals_the_equation_at_any_scale(scale: float) -> None:
    # A loss of normalised features would not depend on the scale.
    features, target = scale * torch.randn(12, 5), torch.arange(12) % 4
    assert BatchHardTripletLoss()(features, target).item() == pytest.approx(transcribed(features, target), rel=1e-4)


def test_well_separated_images_count_in_the_mean() -> None:
    features = torch.tensor([[0.0, 0.0], [0.0, 1.0], [30.0, 0.0], [30.0, 1.0], [2.0, 0.0], [2.0, 1.0]])
    target = torch.tensor([0, 0, 1, 1, 2, 2])
    assert BatchHardTripletLoss()(features, target).item() == pytest.approx(transcribed(features, target), rel=1e-4)


def test_distances_are_never_in_half_precision() -> None:
    # bfloat16 knows no numbers between 256 and 258.
    features, target = torch.tensor([[256.0], [257.0], [259.5]]), torch.tensor([0, 0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = BatchHardTripletLoss()(features, target)
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(x)) for x in (1 - 3.5, 1 - 2.5)) / 2, rel=1e-5)


@pytest.mark.parametrize("target", [[0, 0, 0], [0, 1, 2]], ids=["no negatives", "no positives"])
def test_batch_without_triplets_has_zero_loss(target: list[int]) -> None:
    features = torch.randn(3, 4, requires_grad=True)
    loss = BatchHardTripletLoss()(features, torch.tensor(target))
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert not features.grad.any()
