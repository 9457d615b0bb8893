"""Sheets of heat maps: images and any number of maps over each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from visionattn.viz.heat import draw_heat
from visionattn.viz.image import Pixels, scale_to_height, to_pixels
from visionattn.viz.strips import draw_strips


def draw_heat_maps(
    images: Sequence[Any],
    maps: Any,
    captions: Sequence[str],
    *,
    labels: Sequence[str] = (),
    title: str = "",
    height: int = 160,
) -> Pixels:
    """Draw a strip for each image: the image, and its maps over it, each from 0 (dark) to its largest value (bright).

    Args:
        images: P paths, Pillow images, or bytes [H, W, 3], all of one aspect ratio.
        maps: K non-negative maps for each image, [P, K, rows, columns].
        captions: of the K maps.
        labels: a line above each image; none for no lines.
        title: title of the sheet.
        height: height of an image on the sheet, in pixels.

    Returns:
        Bytes [H', W', 3].

    Raises:
        ValueError: maps that do not fit images or captions, or that are negative or not finite.
        OSError: a file that is missing or not an image.
    """
    values = np.asarray(maps, dtype=np.float64)
    if values.ndim != 4 or values.shape[:2] != (len(images), len(captions)):
        raise ValueError(f"{len(images)} images and {len(captions)} captions do not fit maps {list(values.shape)}")
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("heat maps must be finite and at least 0")
    strips = []
    for image, each in zip(images, values, strict=True):
        pixels = scale_to_height(to_pixels(image), height)
        strips.append([pixels, *(draw_heat(pixels, one, low=0) for one in each)])
    return draw_strips(strips, ("image", *captions), labels, title)
