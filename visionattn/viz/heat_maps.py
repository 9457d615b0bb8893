"""Sheets of heat maps: images and any number of maps over each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from visionattn.viz.heat import draw_heat
from visionattn.viz.image import Pixels, to_pixels
from visionattn.viz.sheet import caption, join_tiles, stack_rows, title_bar


def draw_heat_maps(
    images: Sequence[Any], maps: Any, captions: Sequence[str], *, title: str = "", height: int = 160
) -> Pixels:
    """Draw a row for each image: the image, and each of its maps over it, from 0 (dark) to its largest value (bright).

    Args:
        images: P paths, Pillow images, or bytes [H, W, 3].
        maps: K non-negative maps for each image, [P, K, rows, columns].
        captions: of the K maps.
        title: title of the sheet.
        height: height and width of an image on the sheet, in pixels.

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
    rows = [join_tiles([caption(text, height) for text in ("image", *captions)])]
    for image, each in zip(images, values, strict=True):
        pixels = fit_tile(to_pixels(image), height)
        rows.append(join_tiles([pixels, *(draw_heat(pixels, one, low=0) for one in each)]))
    return title_bar(stack_rows(rows), title)


def fit_tile(pixels: Pixels, height: int) -> Pixels:
    """Resize an image to a square tile."""
    import cv2

    method = cv2.INTER_AREA if len(pixels) > height else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (height, height), interpolation=method), dtype=np.uint8)
