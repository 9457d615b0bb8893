"""Class frequencies, and the weights of images with which all classes are drawn equally often."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Targets = Sequence[int] | npt.NDArray[np.bool_]
"""The class index of each image; or whether each image has each class, [N, K]."""


def count_classes(targets: Targets, num_classes: int) -> Tensor:
    """Return the number of images of each class, [K]."""
    if isinstance(targets, np.ndarray):
        return torch.from_numpy(targets.sum(axis=0))
    return torch.bincount(torch.as_tensor(targets, dtype=torch.long), minlength=num_classes)


def weigh_images(targets: Targets) -> Tensor:
    """Return the weight of each image, [N], in a draw that takes all classes equally often.

    An image weighs one over the number of images of its class. If it has several classes, its rarest one counts; images
    without a class are one more class.
    """
    if not isinstance(targets, np.ndarray):
        targets = np.asarray(targets)
        return torch.from_numpy(1 / np.bincount(targets)[targets])
    with_rest = np.column_stack([targets, ~targets.any(axis=1)])
    counts = with_rest.sum(axis=0)
    return torch.from_numpy(1 / np.where(with_rest, counts, len(targets)).min(axis=1))
