"""Laws of the losses on drawn batches."""

import math
from typing import Any

import torch
from holding import holds_for
from hypothesis import strategies as st
from torch import Tensor

from visionattn.losses.center import CenterLoss
from visionattn.losses.triplet import BatchHardTripletLoss
from visionattn.losses.uncertainty import UncertaintyWeightedLoss


@st.composite
def batches(draw: Any) -> tuple[Tensor, Tensor]:
    """Draw features and identities, at least two images of each of two identities."""
    count = draw(st.integers(4, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    target = draw(st.lists(st.integers(0, 3), min_size=count - 4, max_size=count - 4))
    return torch.randn(count, 5, generator=generator), torch.tensor([0, 0, 1, 1, *target])


def close(found: Tensor, expected: Tensor | float) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-4, atol=1e-5)


@holds_for(batches(), st.randoms(use_true_random=False), st.floats(-3, 3))
def test_triplet_loss_depends_on_distances_alone(batch: tuple[Tensor, Tensor], random: Any, shift: float) -> None:
    features, target = batch
    loss = BatchHardTripletLoss()(features, target)
    assert loss >= 0
    order = torch.tensor(random.sample(range(len(target)), len(target)))
    close(BatchHardTripletLoss()(features[order], target[order]), loss)
    turn = torch.linalg.qr(torch.randn(5, 5)).Q
    close(BatchHardTripletLoss()(features @ turn + shift, target), loss)
    close(BatchHardTripletLoss()(features, 7 - target), loss)


@holds_for(batches())
def test_triplet_loss_is_small_for_separated_and_large_for_mixed_identities(batch: tuple[Tensor, Tensor]) -> None:
    features, target = batch
    apart = features / 100 + 50 * torch.eye(5)[target]
    assert BatchHardTripletLoss()(apart, target) < 1e-6
    close(BatchHardTripletLoss()(torch.zeros_like(features), target), math.log(2))


@holds_for(batches(), st.floats(0.1, 1))
def test_centres_move_with_their_own_classes_alone(batch: tuple[Tensor, Tensor], rate: float) -> None:
    features, target = batch
    loss = CenterLoss(5, 5, rate)
    before = loss(features, target)
    close(before, features.square().sum(1).mean() / 2)
    for label in range(5):
        own = features[target == label]
        close(loss.centers[label], rate * own.sum(0) / (1 + len(own)))
    for _ in range(60):
        loss(features, target)
    assert loss.eval()(features, target) <= before
    centers = loss.centers.clone()
    loss(features, target)
    assert torch.equal(loss.centers, centers), "evaluation moves nothing"


@holds_for(st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 50), min_size=1))
def test_learned_weights_minimise_the_uncertainty_loss(values: dict[str, float]) -> None:
    """½ (exp(-w) L + w) has its minimum ½ (1 + log L) at w = log L."""
    loss, losses = UncertaintyWeightedLoss(list(values)), {name: torch.tensor(x) for name, x in values.items()}
    close(loss(losses), sum(values.values()) / 2)
    with torch.no_grad():
        for name, value in values.items():
            loss.log_variances[name].fill_(math.log(value))
    total = loss(losses)
    close(total, sum(1 + math.log(x) for x in values.values()) / 2)
    total.backward()
    for parameter in loss.parameters():
        assert parameter.grad is not None
        close(parameter.grad, 0.0)
    for name, weight in loss.weights().items():
        close(weight, 0.5 / values[name])
