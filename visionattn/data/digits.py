"""The embedded data set: scikit-learn's handwritten digits, which need no download."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

EDGE = 32  # pixels; the scans are 8×8


class Digits:
    """1,797 scans of handwritten digits, enlarged from 8×8 to 32×32.

    Every fifth image of each digit, in the order of the file, belongs to the validation split: 355 of them, and 1,442
    for training.

    Args:
        split: one of the two splits.
        mode: Pillow's mode of the images, ``"RGB"`` or ``"L"``.
    """

    def __init__(self, split: Literal["train", "validation"], mode: str = "RGB") -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        rank = np.empty(len(digits.target), dtype=int)  # of each image among those of its digit
        for digit in range(10):
            members = np.flatnonzero(digits.target == digit)
            rank[members] = np.arange(len(members))
        held_out = rank % 5 == 4
        self.numbers = np.flatnonzero(held_out if split == "validation" else ~held_out)
        self.scans = (digits.images[self.numbers] * (255 / 16)).round().astype(np.uint8)
        self._targets: list[int] = digits.target[self.numbers].tolist()
        self.mode = mode
        self.class_to_idx: Mapping[str, int] | None = {str(digit): digit for digit in range(10)}

    def __len__(self) -> int:
        return len(self._targets)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and its digit."""
        image = Image.fromarray(self.scans[index]).resize((EDGE, EDGE), Image.Resampling.BICUBIC)
        return image.convert(self.mode), self._targets[index]

    def name_of(self, index: int) -> str:
        """Return the name of an image: its position in scikit-learn's file."""
        return f"digits/{self.numbers[index]:04d}"

    def targets(self) -> Sequence[int]:
        """Return the digits of all images."""
        return self._targets

    def archives(self) -> Sequence[Path | bytes]:
        """Return the scans, from memory."""
        return [self.scans.tobytes()]
