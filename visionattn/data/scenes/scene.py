"""An image and the segments that it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

UNLABELLED = 0
"""Id of positions without a segment or without annotation."""


@dataclass(frozen=True)
class Scene:
    """An image with the segments that it is made of.

    A segment is an object ("thing") or a region without countable parts ("stuff": sky, the background). Its id is its
    number, from 1 on.

    Attributes:
        image: The image, RGB.
        segments: `[H, W]`, int32, the size of the image: the id of each position's segment, or `UNLABELLED`.
        classes: `[S + 1]`, int64: the class of each segment by its id; that of id 0 is -1.
        things: `[S + 1]`, bool: whether a segment is an object; id 0 is not.
    """

    image: Image.Image
    segments: np.ndarray
    classes: np.ndarray
    things: np.ndarray

    def __post_init__(self) -> None:
        width, height = self.image.size
        assert self.segments.shape == (height, width), (self.segments.shape, self.image.size)
        assert len(self.classes) == len(self.things) > int(self.segments.max(initial=0))
        assert not self.things[UNLABELLED]


class Scenes(Protocol):
    """One split of a data set of scenes; reading a scene twice returns the same.

    Attributes:
        class_names: Class names in the order of their numbers.
    """

    class_names: Sequence[str]

    def __len__(self) -> int:
        """Return the number of scenes."""

    def name(self, index: int) -> str:
        """Return the name of a scene: a path within the data set or a number."""

    def parts(self, index: int) -> list[Path]:
        """Return the files that a scene is read from; none if it is drawn."""

    def __getitem__(self, index: int) -> Scene:
        """Read or draw a scene.

        Raises:
            OSError: Unreadable image.
            ValueError: Annotations that do not fit it.
        """
