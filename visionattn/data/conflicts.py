"""Images whose cues are in conflict, each with two images that differ from it in one cue."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from visionattn.data.dominoes import NUM_CLASSES, Dominoes, Numbers, draw_members

SEED = 3
"""Seed of the digits and photos that are put in the place of others."""


class ConflictBatch(NamedTuple):
    """Images of a digit of one class above a photo of another, and what is put in the place of either.

    Attributes:
        image: Normalised images `[B, C, H, W]`.
        other_digit: The same photos below digits of a third class, `[B, C, H, W]`.
        other_photo: The same digits above photos of a third class, `[B, C, H, W]`.
        digit: Classes of the digits `[B]`.
        photo: Classes of the photos `[B]`.
    """

    image: Tensor
    other_digit: Tensor
    other_photo: Tensor
    digit: Tensor
    photo: Tensor


class Conflicts:
    """Conflicts, which can be gone through any number of times: the same images, in the same batches.

    Args:
        dominoes: Digits above photos of other classes.
        places: Places of the images to take.
        transform: From an image of Pillow to a normalised tensor `[C, H, W]`.
        batch_size: Images in a batch.
        device: Device of the batches.
    """

    def __init__(
        self,
        dominoes: Dominoes,
        places: list[int],
        transform: Callable[[Any], Tensor],
        batch_size: int = 100,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dominoes, self.places, self.transform = dominoes, places, transform
        self.batch_size, self.device = batch_size, device
        digits, photos = dominoes.digit_classes, dominoes.photo_classes
        draws = np.random.RandomState(SEED)  # its numbers are guaranteed never to change
        self.other_digits = draw_members(dominoes.digits.targets(), _draw_third(digits, photos, draws), draws)
        self.other_photos = draw_members(dominoes.photos.targets(), _draw_third(digits, photos, draws), draws)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.places) // self.batch_size)

    def __iter__(self) -> Iterator[ConflictBatch]:
        """Yield all batches."""
        source = self.dominoes
        for first in range(0, len(self.places), self.batch_size):
            places = self.places[first : first + self.batch_size]
            digits = source.digit_places[places]
            yield ConflictBatch(
                self._compose(digits, places),
                self._compose(self.other_digits[places], places),
                self._compose(digits, self.other_photos[places]),
                torch.as_tensor(source.digit_classes[places], device=self.device),
                torch.as_tensor(source.photo_classes[places], device=self.device),
            )

    def _compose(self, digits: Any, photos: Any) -> Tensor:
        images = (self.dominoes.compose(digit, photo) for digit, photo in zip(digits, photos, strict=True))
        return torch.stack([self.transform(image) for image in images]).to(self.device)


def _draw_third(one: Numbers, other: Numbers, draws: np.random.RandomState) -> Numbers:
    """Draw a class for each image that is neither of its two, [N]."""
    third = draws.randint(0, NUM_CLASSES - 2, len(one))
    for taken in (np.minimum(one, other), np.maximum(one, other)):
        third = third + (third >= taken)
    return third
