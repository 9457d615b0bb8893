"""The embedded scenes: shapes that hide parts of each other, drawn from a seed, with exact segments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from visionattn.data.drawing.shapes import LEVELS, SHAPES, SUBPIXELS, Pattern, draw_pattern, draw_shape
from visionattn.data.errors import DataError
from visionattn.data.scenes.scene import Scene

SEED = 8  # of everything that is drawn
TRAIN = ("train", "training")
LENGTHS = (10_000, 1_000)
"""Scenes for training and for validation."""
BACKGROUND = 1
"""The id of the background's segment."""
TRIES = 12
"""Number of attempts to place an object before it is left out."""

PALETTE = np.array(
    [
        (220, 36, 36),
        (50, 110, 200),
        (64, 170, 70),
        (146, 70, 170),
        (250, 130, 20),
        (250, 226, 60),
        (120, 72, 40),
        (246, 140, 196),
        (70, 214, 210),
        (242, 242, 238),
        (30, 32, 40),
        (130, 132, 136),
        (180, 226, 110),
    ],
    np.int64,
)
JITTER = 12
"""By so much each channel differs from the palette's."""
PATTERNS: tuple[Pattern, ...] = ("plain", "plain", "gradient", "stripes", "checks", "dots")

Numbers = np.ndarray[Any, np.dtype[np.int64]]


class _Look(NamedTuple):
    """Random properties of a segment."""

    shape: int
    x: int
    y: int
    radius: int
    turn: int
    pattern: int
    period: int
    slant: int


class Synthetic:
    """Scenes of 2 to ``max_objects`` shapes on a background: a function of the split, the number and the options.

    Id 1 is the background; objects follow from the farthest to the nearest, each in a colour of its own. At least a
    third of each shape is seen, and at least 16 pixels of a scene of 64×64.

    Args:
        split: ``train``, or any other for validation.
        length: number of scenes, by default 10,000 for training and 1,000 for validation.
        image_size: height and width.
        max_objects: largest number of shapes.
        textured: draw patterns of two shades, or gradients, on some shapes and backgrounds.

    Raises:
        DataError: an option is out of its bounds.
    """

    class_names: Sequence[str] = ("background", *SHAPES)

    def __init__(
        self,
        split: str = "train",
        length: int | None = None,
        image_size: int = 64,
        max_objects: int = 6,
        textured: bool = True,
    ) -> None:
        self.split, self.number = split, int(split not in TRAIN)
        self.length = LENGTHS[self.number] if length is None else length
        for what, value, least, most in (
            ("length", self.length, 1, 1 << 32),
            ("image_size", image_size, 16, 4096),
            ("max_objects", max_objects, 2, len(PALETTE) - 1),
        ):
            if not least <= value <= most:
                raise DataError(
                    f"{what} of synthetic scenes must be at least {least} and at most {most:,}, got {value}"
                )
        self.image_size, self.max_objects, self.textured = image_size, max_objects, textured
        edge = image_size * SUBPIXELS
        low = _Look(0, edge // 10, edge // 10, edge // 9, 0, 0, max(2, image_size // 10), 0)
        high = _Look(
            len(SHAPES), edge * 9 // 10, edge * 9 // 10, edge * 2 // 9, 360, len(PATTERNS), image_size // 5, 360
        )
        self._bounds = np.array([low, high])

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        """Return the name of a scene, ``synthetic/SPLIT/NUMBER``."""
        return f"synthetic/{self.split}/{index:05d}"

    def parts(self, index: int) -> list[Path]:
        """Return no files."""
        return []

    def __getitem__(self, index: int) -> Scene:
        """Draw a scene."""
        if not 0 <= index < self.length:
            raise IndexError(f"there are {self.length:,} synthetic scenes for {self.split}, got number {index}")
        rng = np.random.default_rng([SEED, self.number, index])
        count = int(rng.integers(2, self.max_objects, endpoint=True))
        chosen = rng.permutation(len(PALETTE))[: count + 1]
        jitter = rng.integers(-JITTER, JITTER, (count + 1, 3), endpoint=True)
        canvas = _Canvas(rng, self._bounds, self.textured, self.image_size)
        for _ in range(count):
            canvas.add()
        classes = np.array([-1, 0, *canvas.shapes])
        image = canvas.paint((PALETTE[chosen] + jitter).clip(0, 255))
        return Scene(Image.fromarray(image), canvas.segments, classes, np.arange(len(classes)) > BACKGROUND)


class _Canvas:
    """A scene in the making.

    Attributes:
        segments: [H, W].
        shades: shade of the segment's colour [H, W].
        shapes: classes of the objects.
        spare: per segment, the visible pixels above the required number.
    """

    def __init__(self, rng: np.random.Generator, bounds: Numbers, textured: bool, size: int) -> None:
        self.rng, self.bounds, self.textured, self.size = rng, bounds, textured, (size, size)
        self.segments = np.full(self.size, BACKGROUND, np.int32)
        self.shades = self._shades(self._look())
        self.shapes: list[int] = []
        self.least = size * size // 256
        self.spare = np.array([0, size * size * 7 // 8])

    def add(self) -> None:
        """Put an object before the others if enough of every object stays visible."""
        for _ in range(TRIES):
            look = self._look()
            mask = draw_shape(SHAPES[look.shape], (look.x, look.y), look.radius, look.turn, self.size)
            hidden = np.bincount(self.segments[mask], minlength=len(self.spare))
            area, spare = int(hidden.sum()), self.spare - hidden
            if area >= self.least and spare.min() >= 0:
                break
        else:
            return
        np.copyto(self.segments, len(spare), where=mask)
        np.copyto(self.shades, self._shades(look), where=mask)
        self.spare = np.append(spare, area - max(self.least, area // 3))
        self.shapes.append(1 + look.shape)

    def paint(self, colours: Numbers) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the image [H, W, 3] with a colour per segment; dark colours get lighter shades, others darker."""
        dark = colours.max(1, keepdims=True) < 160
        others = np.where(dark, colours + (255 - colours) // 4, colours * 3 // 4)
        level = np.arange(LEVELS)[:, None]
        table = (colours[:, None] * (LEVELS - 1 - level) + others[:, None] * level) // (LEVELS - 1)
        return table.astype(np.uint8)[self.segments - BACKGROUND, self.shades]

    def _look(self) -> _Look:
        return _Look(*self.rng.integers(self.bounds[0], self.bounds[1]).tolist())

    def _shades(self, look: _Look) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return draw_pattern(PATTERNS[look.pattern] if self.textured else "plain", look.period, look.slant, self.size)
