"""Kar3 against its equations, and as one optimizer among timm's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from visionattn.training.optimization import Optimization, create_optimizer

BETAS = (0.5, 0.95)


def transcribed(weights: list[float], gradients: list[list[float]], lr: float, weight_decay: float) -> list[float]:
    """The equations, number by number."""
    averages = [[0.0, 0.0] for _ in weights]

    def sign(x: float) -> int:
        return (x > 0) - (x < 0)

    for step in gradients:
        for index, g in enumerate(step):
            m = averages[index]
            weights[index] -= lr * weight_decay * weights[index] + lr * (sign(g) + sign(m[0]) + sign(m[1]))
            averages[index] = [beta * old + (1 - beta) * g for beta, old in zip(BETAS, m, strict=True)]
    return weights


def create(model: nn.Module, weight_decay: float = 0.0, **options: Any) -> torch.optim.Optimizer:
    options = {"betas": list(BETAS), **options}
    return create_optimizer(model, Optimization("kar3", weight_decay=weight_decay, opt_kwargs=options), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> Tensor:
    for gradient in gradients:
        for parameter in model.parameters():
            parameter.grad = gradient.view_as(parameter)
        optimizer.step()
    return next(model.parameters()).detach().flatten()


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_are_the_equations(weight_decay: float) -> None:
    # Large and small gradients of both signs, so that the two averages come to disagree; and some of exactly 0.
    gradients = torch.randn(12, 6).double() * torch.logspace(-2, 2, 12).double()[torch.randperm(12), None]
    gradients[3] = 0
    gradients[:, 5] = 0
    model = nn.Linear(6, 1, bias=False).double()
    start: list[float] = model.weight[0].tolist()
    weights = train(model, create(model, weight_decay), list(gradients))
    expected = transcribed(start, gradients.tolist(), 0.1, weight_decay)
    torch.testing.assert_close(weights, torch.tensor(expected).double())


def test_averages_lag_one_step_behind() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = create(model)
    moves = [train(model, optimizer, [torch.tensor([g])]).item() for g in (1.0, 1.0, -0.1)]
    # First there are no averages; then all agree; at last the averages outvote the gradient.
    assert moves == pytest.approx([-0.1, -0.4, -0.5])


def test_interrupted_steps_go_on_from_the_state_dict() -> None:
    gradients = list(torch.randn(8, 4))
    whole, first, second = (nn.Linear(4, 1, bias=False) for _ in range(3))
    first.load_state_dict(whole.state_dict())
    expected = train(whole, create(whole), gradients)
    optimizer = create(first)
    train(first, optimizer, gradients[:5])
    second.load_state_dict(first.state_dict())
    resumed = create(second)
    resumed.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(train(second, resumed, gradients[5:]), expected, rtol=0, atol=0)


def test_parameters_without_a_gradient_stay() -> None:
    model = nn.Linear(3, 1)
    before = model.bias.detach().clone()
    optimizer = create(model)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert torch.equal(model.bias, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": [0.5]}, "betas must be two numbers"),
        ({"betas": [0.5, 1.0]}, r"in \[0, 1\).*got \[0.5, 1.0\]"),
        ({"eps": 1e-8, "momenta": 1}, "optimizer 'kar3'.*momenta"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(nn.Linear(2, 1), **options)
