"""A model with an auxiliary loss, and the pairs that models with several branches see."""

from typing import Any

import pytest
from torch import Tensor, nn

from visionattn.models import DcalVisionTransformer
from visionattn.tasks.classification import ClassificationTask


@pytest.fixture
def slow_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the task's models have an auxiliary loss, a tenth of the mean square of the head's weights."""
    original = ClassificationTask._create

    def create(self: ClassificationTask, num_classes: int | None) -> nn.Module:
        model = original(self, num_classes)

        class Slow(type(model)):  # type: ignore[misc]
            def auxiliary_losses(self) -> dict[str, Tensor]:
                return {"slow": self.fc.weight.square().mean() / 10}

        model.__class__ = Slow
        return model

    monkeypatch.setattr(ClassificationTask, "_create", create)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """The pairs that DCAL's models see, call by call."""
    original = DcalVisionTransformer.forward_branches
    seen: list[Tensor | None] = []

    def forward_branches(self: DcalVisionTransformer, x: Tensor, pair: Tensor | None = None) -> dict[str, Any]:
        seen.append(pair)
        return original(self, x, pair)

    monkeypatch.setattr(DcalVisionTransformer, "forward_branches", forward_branches)
    return seen
