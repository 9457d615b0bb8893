"""Sheets of principal components: images, and the colours of their patches."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from visionattn.viz.image import Pixels, scale_to_height, to_pixels
from visionattn.viz.strips import draw_strips

EDGE = 4.0  # steepness of the foreground's edge, per patch


def draw_components(
    images: Sequence[Any],
    colours: Any,
    foreground_colours: Any,
    foreground: Any,
    *,
    title: str = "",
    height: int = 160,
) -> Pixels:
    """Draw for each image the image, its patches as colours, and the foreground's patches as colours of their own.

    Args:
        images: P paths, Pillow images, or bytes [H, W, 3], all of one aspect ratio.
        colours: red, green and blue of all patches from 0 to 1, [P, rows, columns, 3].
        foreground_colours: the same by the components of the foreground.
        foreground: whether a patch belongs to the foreground, [P, rows, columns].
        title: title of the sheet.
        height: height of an image on the sheet, in pixels.

    Returns:
        Bytes [H', W', 3].
    """
    strips = []
    for number, image in enumerate(images):
        pixels = scale_to_height(to_pixels(image), height)
        size = pixels.shape[:2]
        alone = paint_patches(foreground_colours[number], size, foreground[number])
        strips.append([pixels, paint_patches(colours[number], size), alone])
    return draw_strips(strips, ("image", "all patches", "foreground"), title=title)


def paint_patches(colours: Any, size: tuple[int, int], foreground: Any = None) -> Pixels:
    """Draw patches as colours, interpolated bicubically, on black outside the foreground.

    Args:
        colours: red, green and blue from 0 to 1, [rows, columns, 3].
        size: height and width in pixels.
        foreground: whether a patch belongs to the foreground, [rows, columns]; None for all.

    Returns:
        Bytes [H, W, 3].
    """
    import cv2

    smooth = cv2.resize(np.asarray(colours, np.float64), size[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
    if foreground is not None:
        inside = cv2.resize(np.asarray(foreground, np.float64), size[::-1], interpolation=cv2.INTER_CUBIC)
        smooth *= (EDGE * (inside - 0.5) + 0.5).clip(0, 1)[..., None]
    return np.asarray((255 * smooth).round(), dtype=np.uint8)
