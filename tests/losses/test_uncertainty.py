"""Losses weighted by learned uncertainties, against the equation of DCAL's section 3.4."""

import math

import pytest
import torch
from torch import Tensor

from visionattn.losses.uncertainty import UncertaintyWeightedLoss

NAMES = ("sa", "glca", "pwca")


def weighting(*log_variances: float) -> UncertaintyWeightedLoss:
    loss = UncertaintyWeightedLoss(NAMES[: len(log_variances)]).double()
    with torch.no_grad():
        for parameter, value in zip(loss.parameters(), log_variances, strict=True):
            parameter.fill_(value)
    return loss


def losses(*values: float) -> dict[str, Tensor]:
    found = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values)
    return dict(zip(NAMES, found, strict=False))


def test_initial_uncertainty_loss_is_half_of_the_sum() -> None:
    loss = UncertaintyWeightedLoss(NAMES)
    assert loss(losses(1.0, 2.0, 5.0)).item() == 4
    assert {name: weight.item() for name, weight in loss.weights().items()} == dict.fromkeys(NAMES, 0.5)


def test_uncertainty_loss_and_gradients_equal_the_equation() -> None:
    values, log_variances = (0.3, 4.0, 1.7), (-0.7, 1.3, 0.0)
    loss, given = weighting(*log_variances), losses(*values)
    total = loss(given)
    expected = sum(math.exp(-w) * value + w for value, w in zip(values, log_variances, strict=True)) / 2
    assert total.dtype == torch.float64
    assert total.item() == pytest.approx(expected, rel=1e-14)
    total.backward()
    for name, value, w in zip(NAMES, values, log_variances, strict=True):
        assert loss.log_variances[name].grad.item() == pytest.approx((1 - math.exp(-w) * value) / 2, rel=1e-14)
        assert given[name].grad.item() == pytest.approx(math.exp(-w) / 2, rel=1e-14)  # type: ignore[union-attr]
        assert loss.weights()[name].item() == pytest.approx(math.exp(-w) / 2, rel=1e-14)


def test_order_of_losses_does_not_matter() -> None:
    loss, given = weighting(-1.0, 0.5, 2.0), losses(1.0, 2.0, 3.0)
    assert loss(dict(reversed(given.items()))).item() == pytest.approx(loss(given).item(), rel=1e-14)


def test_weight_of_a_constant_loss_converges_to_its_logarithm() -> None:
    # Where the gradient vanishes, exp(-w) L = 1.
    loss = weighting(0.0, 0.0)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        loss(losses(0.5, 6.0)).backward()
        optimizer.step()
    assert [parameter.item() for parameter in loss.parameters()] == pytest.approx([math.log(0.5), math.log(6)])


@pytest.mark.parametrize(("log_variance", "bound"), [(-25.0, -10.0), (12.0, 10.0)])
def test_weights_are_bounded(log_variance: float, bound: float) -> None:
    loss = weighting(log_variance)
    total = loss(losses(3.0))
    assert total.item() == pytest.approx((math.exp(-bound) * 3 + bound) / 2, rel=1e-14)
    total.backward()
    assert loss.log_variances["sa"].grad.item() == 0
    assert loss.weights()["sa"].item() == pytest.approx(math.exp(-bound) / 2, rel=1e-14)


def test_weight_of_a_zero_loss_stays_finite() -> None:
    loss = weighting(0.0)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        loss(losses(0.0)).backward()
        optimizer.step()
    assert -11 < loss.log_variances["sa"].item() <= -10
    assert math.isfinite(loss(losses(1.0)).item())


def test_learned_weights_are_saved_and_logged_without_a_graph() -> None:
    loss = UncertaintyWeightedLoss(NAMES)
    assert list(loss.state_dict()) == [f"log_variances.{name}" for name in NAMES]
    assert [parameter.shape for parameter in loss.parameters()] == [()] * 3
    assert not any(weight.requires_grad for weight in loss.weights().values())


@pytest.mark.parametrize("names", [("sa", "glca"), ("sa", "glca", "pwca", "cls"), ("sa", "glca", "cls"), ()])
def test_undeclared_losses_are_refused(names: tuple[str, ...]) -> None:
    given = {name: torch.zeros(()) for name in names}
    with pytest.raises(ValueError, match=rf"expected the losses sa, glca, pwca; got {', '.join(names)}$"):
        UncertaintyWeightedLoss(NAMES)(given)
