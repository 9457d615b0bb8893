"""From the numbers that a data set's mask holds to segments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from visionattn.data.images import to_mode
from visionattn.data.loading import BROKEN
from visionattn.data.scenes.scene import UNLABELLED, Scene

Keys = np.ndarray[Any, np.dtype[np.int32]]


class Label(NamedTuple):
    """Class number of a segment, and whether it is an object."""

    target: int
    is_thing: bool


def read_rgb(path: Path) -> Image.Image:
    """Read an image in colour as it is stored, not turned upright, so that it fits its mask.

    Raises:
        OSError: It is missing or cannot be decoded.
    """
    with Image.open(path) as file:
        return to_mode(file, "RGB")


def open_mask(path: Path) -> Image.Image:
    """Open an image of numbers, unconverted.

    Raises:
        ValueError: It is missing or cannot be decoded; the message names it.
    """
    try:
        mask = Image.open(path)
        mask.load()
    except FileNotFoundError as error:
        raise ValueError(f"there is no mask {path}") from error
    except BROKEN as error:
        raise ValueError(f"its mask {path} cannot be read") from error
    return mask


def channels(mask: Image.Image) -> tuple[Keys, Keys, Keys]:
    """Return red, green and blue of a mask, each `[H, W]`."""
    red, green, blue = np.moveaxis(np.asarray(mask.convert("RGB"), dtype=np.int32), 2, 0)
    return red, green, blue


def labelled_scene(image: Image.Image, keys: Keys, label: Callable[[int], Label | None]) -> Scene:
    """Number the segments from 1 on, in the order of their keys.

    Args:
        image: The image.
        keys: `[H, W]`: the data set's number of each position's segment.
        label: Function from a key to the label of its segment; None means `UNLABELLED`.

    Raises:
        ValueError: Image and mask differ in size.
    """
    height, width = keys.shape
    if image.size != (width, height):
        raise ValueError(f"it has {image.width}×{image.height} pixels, and its mask {width}×{height}")
    present = np.unique(keys)
    labels = [label(int(key)) for key in present]
    known = np.array([found is not None for found in labels])
    numbers = np.where(known, known.cumsum(), UNLABELLED).astype(np.int32)
    kept = [found for found in labels if found is not None]
    return Scene(
        image,
        numbers[np.searchsorted(present, keys)],
        np.array([-1, *(found.target for found in kept)]),
        np.array([False, *(found.is_thing for found in kept)]),
    )
