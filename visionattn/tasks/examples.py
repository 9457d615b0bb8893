"""Images of a validation that are kept to be drawn."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

EXAMPLES = 16
"""So many, evenly spaced."""


class Examples(Protocol):
    """What a task has made of some images."""

    @property
    def title(self) -> str:
        """What they are, a word that stands in the name of the file."""

    def save(self, path: Path, mean: Sequence[float], std: Sequence[float]) -> None:
        """Draws them; their channels were normalised with ``mean`` and ``std``."""


def wanted(batch_idx: int, batches: float) -> int:
    """How many images are kept of one of so many batches; of the first ones, where there may be any number."""
    batches = EXAMPLES if math.isinf(batches) else int(batches)
    return sum(number * batches // EXAMPLES == batch_idx for number in range(EXAMPLES))
