"""Parts of a data set."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from visionattn.data.balance import Targets
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

    def read(self, index: int) -> tuple[Any, int | Tensor]:
        """Return the image and its target."""
        return self.source.read(self.indices[index])

    def name_of(self, index: int) -> str:
        """Return the name of an image in the source."""
        return self.source.name_of(self.indices[index])

    def targets(self) -> Targets:
        """Return the targets of all images."""
        targets = self.source.targets()
        if isinstance(targets, np.ndarray):
            return targets[self.indices]
        return [targets[index] for index in self.indices]

    def archives(self) -> Sequence[Path | bytes]:
        """Return the archives of the source."""
        return self.source.archives()


def first_per_class(source: ImageSource, count: int, seed: int) -> SourceSubset:
    """Keep the first ``count`` images of each class after shuffling with ``seed``, or all if there are fewer.

    If each image has one class, a smaller subset is part of a larger one with the same seed. If images have several
    classes, a frequent class may have more images than ``count``: see :func:`hold_out`. They keep their order.
    """
    return SourceSubset(source, sorted(_first(source, seed, count)))


def hold_out(
    source: ImageSource, count: int | None = None, share: float | None = None
) -> tuple[SourceSubset, SourceSubset]:
    """Split a source into images to train on and held-out images of each class, the same every time.

    If images have several classes, the rarest class is divided first, the most frequent one next to last, and images
    without a class last (in the manner of Sechidis et al., 2011). Each class counts the held-out images that it shares
    with classes before it, and adds some of those that none of them has. The last image of a class is never held out.

    Args:
        source: the images.
        count: number of held-out images of each class.
        share: otherwise their share of the images of each class, rounded, at least one.

    Raises:
        DataError: a class with no images left.
    """
    held = _first(source, 0, count or 1, share, leave_one=True)
    rest = SourceSubset(source, [index for index in range(len(source)) if index not in held])
    targets = source.targets()
    if not isinstance(targets, np.ndarray) and (lost := set(targets) - set(rest.targets())):
        number, names = min(lost), {index: name for name, index in (source.class_to_idx or {}).items()}
        asked = f"--data.holdout_per_class {count}" if share is None else f"--data.val_share {share}"
        raise DataError(
            f"{asked} leaves no image of class {names.get(number, number)} to train on: "
            + ("hold out fewer" if share is None else "add images of it, or leave it out")
        )
    return rest, SourceSubset(source, sorted(held))


def _first(source: ImageSource, seed: int, count: int, share: float | None = None, leave_one: bool = False) -> set[int]:
    """Return the first images of each class after shuffling; of several classes, by the rule of :func:`hold_out`."""
    targets = source.targets()
    shuffled = np.random.default_rng(seed).permutation(len(targets))

    def number(images: int) -> int:
        return count if share is None else max(1, round(share * images))

    if isinstance(targets, np.ndarray):
        return _first_of_several(targets[shuffled], shuffled, number, leave_one)
    classes = np.asarray(targets)[shuffled]
    counts = np.unique(classes, return_counts=True)[1]
    groups = np.split(shuffled[np.argsort(classes, kind="stable")], counts.cumsum()[:-1])
    return {index for own in groups for index in own[: number(len(own))].tolist()}


def _first_of_several(
    labels: npt.NDArray[np.bool_], indices: npt.NDArray[np.intp], number: Callable[[int], int], leave_one: bool
) -> set[int]:
    """Return the indices of the first rows of ``labels`` [N, K] that have each label."""
    with_rest = np.column_stack([labels, ~labels.any(axis=1)])
    left = with_rest.sum(axis=0)
    order = [*np.argsort(left[:-1], kind="stable"), -1]
    wanted = {label: number(left[label]) for label in order if left[label]}
    taken, undecided = np.zeros(len(labels), bool), np.ones(len(labels), bool)
    for label in wanted:
        missing = wanted[label] - with_rest[taken, label].sum()
        for row in np.flatnonzero(undecided & with_rest[:, label]):
            if missing <= 0:
                break
            if leave_one and (left[:-1][labels[row]] <= 1).any():
                continue
            taken[row] = True
            left -= with_rest[row]
            missing -= 1
        undecided &= ~with_rest[:, label]
    return set(indices[taken].tolist())
