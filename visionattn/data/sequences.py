"""Images read pixel by pixel: the sequential image tasks."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from visionattn.data.errors import DataError

SequenceKind = Literal["pixels", "permuted"]


class PixelSequence:
    """Transform of an image ``[C, H, W]`` to the sequence of its pixels, row by row: ``[C, 1, H·W]``.

    Args:
        order: index of the pixel at each position, ``[H·W]``; None for the order in the image.
    """

    def __init__(self, order: Tensor | None = None) -> None:
        self.order = order

    def __call__(self, image: Tensor) -> Tensor:
        """Return an image as a sequence."""
        pixels = image.flatten(1)
        return (pixels if self.order is None else pixels[:, self.order]).unsqueeze(1)


def permutation(length: int, seed: int) -> Tensor:
    """Draw a fixed order of ``length`` pixels.

    The order defines a benchmark and must not depend on versions: this is the generator whose
    numbers NumPy guarantees never to change.
    """
    return torch.from_numpy(np.random.RandomState(seed).permutation(length))


def pixel_sequence(kind: SequenceKind | None, seed: int | None, length: int) -> PixelSequence | None:
    """Build the transform to sequences of ``length`` pixels that ``--data.sequence`` asks for.

    Raises:
        DataError: an unknown kind, or one of the two without the other.
    """
    if kind not in (None, *get_args(SequenceKind)):
        raise DataError(f"--data.sequence must be one of {', '.join(get_args(SequenceKind))}, got {kind!r}")
    if kind == "permuted" and seed is None:
        raise DataError("--data.sequence permuted needs --data.permutation_seed N, the seed of the pixels' order")
    if kind != "permuted" and seed is not None:
        raise DataError(f"--data.permutation_seed {seed} is for --data.sequence permuted, not for {kind or 'images'}")
    if seed is not None and not 0 <= seed < 2**32:
        raise DataError(f"--data.permutation_seed must lie in [0, 2^32), got {seed}")
    return None if kind is None else PixelSequence(None if seed is None else permutation(length, seed))
