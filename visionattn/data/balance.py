"""Class frequencies, and the weights of images with which all classes are drawn equally often."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visionattn.data.errors import DataError

Targets = Sequence[int] | npt.NDArray[np.bool_]
"""The class index of each image; or whether each image has each class, [N, K]."""


def count_classes(targets: Targets, num_classes: int) -> Tensor:
    """Return the number of images of each class, [K].

    Raises:
        DataError: the class of an image is not known.
    """
    if isinstance(targets, np.ndarray):
        return torch.from_numpy(targets.sum(axis=0))
    return torch.bincount(_known(targets), minlength=num_classes)


def weigh_images(targets: Targets) -> Tensor:
    """Return the weight of each image, [N], in a draw that takes all classes equally often.

    An image weighs one over the number of images of its class. If it has several classes, its rarest one counts; images
    without a class are one more class.

    Raises:
        DataError: the class of an image is not known.
    """
    if not isinstance(targets, np.ndarray):
        classes = _known(targets)
        return 1 / torch.bincount(classes)[classes].double()
    with_rest = np.column_stack([targets, ~targets.any(axis=1)])
    counts = with_rest.sum(axis=0)
    return torch.from_numpy(1 / np.where(with_rest, counts, len(targets)).min(axis=1))


def _known(targets: Sequence[int]) -> Tensor:
    classes = torch.as_tensor(targets, dtype=torch.long)
    if (classes < 0).any():
        raise DataError("images of class -1 cannot be balanced: choose a training split that has labels")
    return classes
