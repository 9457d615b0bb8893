"""Parts of a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.errors import DataError
from visionattn.data.sources import ImageSource


class SourceSubset:
    """Some images of a source.

    Args:
        source: source of the images.
        indices: indices in the source, in the order of the subset.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices
        self.class_to_idx: Mapping[str, int] | None = source.class_to_idx

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Any, int]:
        """Return the image and its class index."""
        return self.source.read(self.indices[index])

    def name_of(self, index: int) -> str:
        """Return the name of an image in the source."""
        return self.source.name_of(self.indices[index])

    def targets(self) -> Sequence[int]:
        """Return the class indices of all images."""
        targets = self.source.targets()
        return [targets[index] for index in self.indices]

    def archives(self) -> Sequence[Path | bytes]:
        """Return the archives of the source."""
        return self.source.archives()


def first_per_class(source: ImageSource, count: int, seed: int) -> SourceSubset:
    """Keep the first ``count`` images of each class after shuffling with ``seed``, or all if there are fewer.

    With the same seed, a smaller subset is part of a larger one. They keep the order that they have in the source.
    """
    return SourceSubset(source, sorted(_first(source, count, seed)))


def hold_out(
    source: ImageSource, count: int | None = None, share: float | None = None
) -> tuple[SourceSubset, SourceSubset]:
    """Split a source into images to train on and held-out images of each class, the same every time.

    Args:
        source: the images.
        count: number of held-out images of each class.
        share: otherwise their share of the images of each class, rounded, at least one.

    Raises:
        DataError: a class with no images left.
    """
    held = _first(source, count, 0, share)
    rest = SourceSubset(source, [index for index in range(len(source)) if index not in held])
    if lost := set(source.targets()) - set(rest.targets()):
        number, names = min(lost), {index: name for name, index in (source.class_to_idx or {}).items()}
        asked = f"--data.holdout_per_class {count}" if share is None else f"--data.val_share {share}"
        raise DataError(
            f"{asked} leaves no image of class {names.get(number, number)} to train on: "
            + ("hold out fewer" if share is None else "add images of it, or leave it out")
        )
    return rest, SourceSubset(source, sorted(held))


def _first(source: ImageSource, count: int | None, seed: int, share: float | None = None) -> set[int]:
    targets = np.asarray(source.targets())
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    first: set[int] = set()
    for label in np.unique(targets):
        own = shuffled[targets[shuffled] == label]
        first.update(own[: count if share is None else max(1, round(share * len(own)))].tolist())
    return first
