"""Images of a validation that are kept to be drawn."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

COUNT = 16
"""Number of images, evenly spaced over the validation."""


class Examples:
    """Images of the last validation with what a task made of them.

    Args:
        title: a word for the file name.
        draw: function that draws them; takes the tensors by name, the path, and mean and standard deviation by which
            images were normalised.
    """

    def __init__(self, title: str, draw: Callable[..., object]) -> None:
        self.title, self.draw = title, draw
        self._kept: list[dict[str, Tensor]] = []

    def __bool__(self) -> bool:
        return bool(self._kept)

    def clear(self) -> None:
        """Forget all images."""
        self._kept = []

    def add(self, **tensors: Tensor) -> None:
        """Keep some images: tensors ``[N, …]`` of any device."""
        self._kept.append({name: tensor.cpu() for name, tensor in tensors.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is kept, ``[N, …]``, by name."""
        return {name: torch.cat([batch[name] for batch in self._kept]) for name in (self._kept or [{}])[0]}

    def save(self, path: Path, mean: Sequence[float], std: Sequence[float]) -> None:
        """Draw the images, which were normalised by ``mean`` and ``std``."""
        self.draw(self.tensors(), path, mean, std)


def wanted(batch_idx: int, batches: float) -> int:
    """Return how many images of a batch are kept.

    Args:
        batch_idx: number of the batch.
        batches: number of batches, infinite if unknown; then images come from the first ones.
    """
    batches = COUNT if math.isinf(batches) else int(batches)
    return sum(number * batches // COUNT == batch_idx for number in range(COUNT))
