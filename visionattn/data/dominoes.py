"""Images with two cues of their class: a digit of MNIST above a photo of CIFAR-10 (Shah et al., 2020).

https://arxiv.org/abs/2006.07710
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from visionattn.data.errors import DataError
from visionattn.data.mnist import MNIST

if TYPE_CHECKING:
    from visionattn.data.sources import ImageSource

Numbers = npt.NDArray[np.intp]

EDGE = 32  # pixels; of a photo, and of a digit with its margin
SIZE = (2 * EDGE, EDGE)
"""Height and width of the images."""
NUM_CLASSES = 10
AGREEMENT = 0.95
"""Share of the training images whose cues agree, unless the name of the data set says another."""

Pairing = Literal["train", "validation", "conflicts"]
SEEDS: dict[Pairing, int] = {"train": 0, "validation": 1, "conflicts": 2}


class Dominoes:
    """A digit above each photo, 64×32 pixels. Class k, such as ``3 cat``, has digit k and the k-th class of photos.

    - ``train``: of most photos the digit is of the same class. Of the others it is of another class, drawn at random,
      and the label is the photo's: the digit is the simple cue, and the photo the reliable one. If half of these
      labels were the digit's, the photo would be neither.
    - ``validation``: all cues agree.
    - ``conflicts``: no cues agree; the label is that of the photo.

    The pairs are the same in each run.

    Args:
        digits: Digits; at least one of each class.
        photos: Photos of ten classes.
        pairing: Pairs to make.
        agreement: Share of the training images whose cues agree.
        mode: Pillow's mode of the images, ``"RGB"`` or ``"L"``.

    Attributes:
        digit_places: Place of each image's digit among the digits, [N].
        digit_classes: Class of each image's digit, [N].
        photo_classes: Class of each image's photo, [N].

    Raises:
        DataError: The photos are of more or fewer classes, or a digit is missing.
    """

    def __init__(
        self, digits: MNIST, photos: ImageSource, pairing: Pairing, agreement: float = AGREEMENT, mode: str = "RGB"
    ) -> None:
        names = photos.class_to_idx or {}
        if len(names) != NUM_CLASSES:
            raise DataError(f"dominoes need photos of CIFAR-10's ten classes, not of {len(names)}")
        self.digits, self.photos, self.pairing, self.mode = digits, photos, pairing, mode
        self.class_to_idx: Mapping[str, int] | None = {f"{index} {name}": index for name, index in names.items()}
        draws = np.random.RandomState(SEEDS[pairing])  # its numbers are guaranteed never to change
        classes = np.asarray(photos.targets())
        others = (classes + draws.randint(1, NUM_CLASSES, len(classes))) % NUM_CLASSES
        share = {"train": agreement, "validation": 1.0, "conflicts": 0.0}[pairing]
        self.photo_classes = classes
        self.digit_classes = np.where(draws.random_sample(len(classes)) < share, classes, others)
        self.digit_places = draw_members(digits.targets(), self.digit_classes, draws)

    def __len__(self) -> int:
        return len(self.photos)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and its class."""
        return self.compose(self.digit_places[index], index), int(self.photo_classes[index])

    def compose(self, digit: int, photo: int) -> Image.Image:
        """Return a digit above a photo, by their places in the two sets."""
        image = Image.new(self.mode, SIZE[::-1])
        scan, _ = self.digits.read(digit)
        image.paste(scan.convert(self.mode), ((EDGE - scan.width) // 2, (EDGE - scan.height) // 2))
        image.paste(self.photos.read(photo)[0], (0, EDGE))
        return image

    def name_of(self, index: int) -> str:
        """Return the names of the digit and the photo."""
        return f"{self.digits.name_of(self.digit_places[index])} above {self.photos.name_of(index)}"

    def targets(self) -> Sequence[int]:
        """Return the classes of all images."""
        found: list[int] = self.photo_classes.tolist()
        return found

    def archives(self) -> Sequence[Path | bytes]:
        """Return the digits, from memory, and the photos."""
        photos = self.photos.archives() or [Path(self.photos.name_of(index)) for index in range(len(self))]
        return [*self.digits.archives(), *photos]


def draw_members(classes: npt.ArrayLike, wanted: Numbers, draws: np.random.RandomState) -> Numbers:
    """Draw an item of each wanted class at random.

    Args:
        classes: Class of each item, [M].
        wanted: Classes of the items to draw, [N].
        draws: Random numbers.

    Returns:
        Places of the items, [N].

    Raises:
        DataError: There is no item of a class.
    """
    counts = np.bincount(classes, minlength=NUM_CLASSES)
    if missing := sorted(set(wanted.tolist()) - set(np.flatnonzero(counts).tolist())):
        raise DataError(f"dominoes need digits and photos of all ten classes, there are none of class {missing[0]}")
    firsts = counts.cumsum() - counts
    ranks = (draws.random_sample(len(wanted)) * counts[wanted]).astype(np.intp)
    found: Numbers = np.argsort(classes, kind="stable")[firsts[wanted] + ranks]
    return found


def read_agreement(name: str) -> float:
    """Return the share of agreeing images in the name of a data set, ``dominoes`` or ``dominoes/0.8``.

    Raises:
        DataError: It is not a number from 0 to 1.
    """
    _, slash, text = name.partition("/")
    try:
        agreement = float(text) if slash else AGREEMENT
    except ValueError:
        agreement = -1
    if not 0 <= agreement <= 1:
        raise DataError(f"--data.name {name}: the share of images whose cues agree lies between 0 and 1: dominoes/0.8")
    return agreement
