"""Parts of a data set."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from visionattn.data.sources import Source


class Subset:
    """Some pictures of a source.

    Args:
        source: which has them.
        indices: theirs in the source, in the order of the subset.
    """

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices
        self.class_to_idx: Mapping[str, int] | None = source.class_to_idx

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The picture and its class index."""
        return self.source.read(self.indices[index])

    def name_of(self, index: int) -> str:
        """What the source calls it."""
        return self.source.name_of(self.indices[index])

    def targets(self) -> Sequence[int]:
        """Class indices of all pictures."""
        targets = self.source.targets()
        return [targets[index] for index in self.indices]


def first_per_class(source: Source, count: int, seed: int) -> Subset:
    """So many pictures of each class, the first ones after shuffling with ``seed``; all of a class that has fewer.

    With the same seed, a smaller subset is part of a larger one. They keep the order that they have in the source.
    """
    targets = np.asarray(source.targets())
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    kept = [shuffled[targets[shuffled] == label][:count] for label in np.unique(targets)]
    return Subset(source, sorted(int(index) for indices in kept for index in indices))
