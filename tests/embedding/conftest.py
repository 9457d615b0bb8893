"""Fixtures of tests of features of files."""

from typing import Any

import pytest
from torch import Tensor

from visionattn.probing.frozen import FrozenBackbone


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each batch that a backbone sees adds its size."""
    seen: list[int] = []
    forward = FrozenBackbone.forward

    def counted(self: FrozenBackbone, images: Tensor) -> Any:
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(FrozenBackbone, "forward", counted)
    return seen
