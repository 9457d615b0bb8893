"""Attention of DCAL models: the rollout over an image, and the selected patches."""

from typing import Any

import numpy as np

from visionattn.viz.heat import draw_heat
from visionattn.viz.image import Pixels, scale_to_height, to_pixels
from visionattn.viz.sheet import BACKGROUND

HEIGHT = 192  # smallest height in pixels
GAP = 8
DIMMED = 0.35  # brightness outside the selected patches
FRAME = (255, 196, 0)


def draw_rollout(image: Any, scores: Any, selected: Any, grid: tuple[int, int]) -> Pixels:
    """Draw three panels: the image, the attention rollout over it, and the selected patches, framed among dimmed ones.

    The heat map covers the range of the scores, from the smallest (dark) to the largest (bright). Images less than 192
    pixels high are enlarged.

    Args:
        image: path, Pillow image, or bytes [H, W, 3].
        scores: attention rollout of the class token over the patches, [N], row by row.
        selected: indices of the selected patches, [R].
        grid: rows and columns of patches; N is their product.

    Returns:
        Bytes [H', W', 3].

    Raises:
        ValueError: scores or indices that do not fit the grid, or an array that is not an image.
        OSError: a file that is missing or not an image.
    """
    rows, columns = grid
    heat, chosen = np.asarray(scores, dtype=np.float64), np.asarray(selected, dtype=np.int64)
    if not heat.size or heat.shape != (rows * columns,):
        raise ValueError(f"a grid of {rows}×{columns} patches has as many scores, got {list(heat.shape)}")
    if not np.isfinite(heat).all():
        raise ValueError("the scores of the rollout must be finite, got infinite ones or NaN")
    if chosen.ndim != 1 or not ((chosen >= 0) & (chosen < heat.size)).all():
        raise ValueError(f"the selected of {heat.size} patches are numbers from 0 to {heat.size - 1}, got {chosen}")
    pixels = to_pixels(image)
    pixels = scale_to_height(pixels, max(HEIGHT, len(pixels)))
    space = np.full((len(pixels), GAP, 3), BACKGROUND, np.uint8)
    panels = draw_heat(pixels, heat.reshape(grid)), _selected(pixels, chosen, grid)
    return np.concatenate([pixels, space, panels[0], space, panels[1]], axis=1)


def _selected(pixels: Pixels, chosen: np.ndarray[Any, np.dtype[np.int64]], grid: tuple[int, int]) -> Pixels:
    """Dim all but the chosen patches, and draw a line of one pixel along their inner border."""
    import cv2

    height, width = pixels.shape[:2]
    patches = np.zeros(grid[0] * grid[1], np.uint8)
    patches[chosen] = 1
    row, column = np.arange(height) * grid[0] // height, np.arange(width) * grid[1] // width
    bright = patches.reshape(grid)[row[:, None], column]
    within = cv2.erode(bright, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    panel = np.asarray((DIMMED * pixels).round(), dtype=np.uint8)
    panel[bright > 0] = FRAME
    panel[within > 0] = pixels[within > 0]
    return panel
