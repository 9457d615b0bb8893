"""Parts of a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from visionattn.data.errors import DataError
from visionattn.data.sources import ImageSource


class Subset:
    """Some images of a source.

    Args:
        source: which has them.
        indices: theirs in the source, in the order of the subset.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices
        self.class_to_idx: Mapping[str, int] | None = source.class_to_idx

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image and its class index."""
        return self.source.read(self.indices[index])

    def name_of(self, index: int) -> str:
        """What the source calls it."""
        return self.source.name_of(self.indices[index])

    def targets(self) -> Sequence[int]:
        """Class indices of all images."""
        targets = self.source.targets()
        return [targets[index] for index in self.indices]

    def archives(self) -> Sequence[Path | bytes]:
        """The source's."""
        return self.source.archives()


def first_per_class(source: ImageSource, count: int, seed: int) -> Subset:
    """So many images of each class, the first ones after shuffling with ``seed``; all of a class that has fewer.

    With the same seed, a smaller subset is part of a larger one. They keep the order that they have in the source.
    """
    return Subset(source, sorted(_first(source, count, seed)))


def hold_out(source: ImageSource, count: int) -> tuple[Subset, Subset]:
    """What is left to train on, and ``count`` images of each class that are held out, the same ones every time.

    Raises:
        DataError: a class with no images left.
    """
    held = _first(source, count, seed=0)
    rest = Subset(source, [index for index in range(len(source)) if index not in held])
    if lost := set(source.targets()) - set(rest.targets()):
        number, names = min(lost), {index: name for name, index in (source.class_to_idx or {}).items()}
        raise DataError(
            f"--data.holdout_per_class {count} leaves no image of class {names.get(number, number)} to train on: "
            "hold out fewer"
        )
    return rest, Subset(source, sorted(held))


def _first(source: ImageSource, count: int, seed: int) -> set[int]:
    targets = np.asarray(source.targets())
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    return {int(index) for label in np.unique(targets) for index in shuffled[targets[shuffled] == label][:count]}
