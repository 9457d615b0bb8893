"""What the attention of DCAL is on: its rollout over a photograph, and the patches that are selected by it."""

from typing import Any

import numpy as np

from visionattn.viz.image import Pixels, scale_to_height, to_pixels

HEIGHT = 192  # pixels, at least
GAP, BACKGROUND = 8, 255
HEAT = 0.6  # of the heat map; the rest is the photograph
DIMMED = 0.35  # of the brightness, outside the selected patches
FRAME = (255, 196, 0)


def draw_rollout(image: Any, scores: Any, selected: Any, grid: tuple[int, int]) -> Pixels:
    """Three panels: a photograph, the attention rollout over it, and the selected patches, framed, among dimmed ones.

    The heat map goes from the least of the scores (dark) to the greatest (bright), whatever they are. Photographs
    less than 192 pixels high are enlarged.

    Args:
        image: path, Pillow image, or bytes [H, W, 3].
        scores: attention rollout of the class token over the patches, [N], row by row.
        selected: indices of the selected patches, [R].
        grid: rows and columns of patches; N is their product.

    Returns:
        Bytes [H', W', 3].

    Raises:
        ValueError: scores or indices that do not fit the grid, or numbers that are no image.
        OSError: a file that is not there or no image.
    """
    rows, columns = grid
    heat, chosen = np.asarray(scores, dtype=np.float64), np.asarray(selected, dtype=np.int64)
    if not heat.size or heat.shape != (rows * columns,):
        raise ValueError(f"a grid of {rows}×{columns} patches has as many scores, got {list(heat.shape)}")
    if not np.isfinite(heat).all():
        raise ValueError("the scores of the rollout must be finite, got infinite ones or NaN")
    if chosen.ndim != 1 or not ((chosen >= 0) & (chosen < heat.size)).all():
        raise ValueError(f"the selected of {heat.size} patches are numbers from 0 to {heat.size - 1}, got {chosen}")
    photograph = to_pixels(image)
    photograph = scale_to_height(photograph, max(HEIGHT, len(photograph)))
    space = np.full((len(photograph), GAP, 3), BACKGROUND, np.uint8)
    panels = _heated(photograph, heat.reshape(grid)), _selected(photograph, chosen, grid)
    return np.concatenate([photograph, space, panels[0], space, panels[1]], axis=1)


def _heated(photograph: Pixels, scores: np.ndarray[Any, np.dtype[np.float64]]) -> Pixels:
    """The scores [rows, columns] as colours over the photograph, smoothly from patch to patch."""
    import cv2

    height, width = photograph.shape[:2]
    unit = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    smooth = cv2.resize(unit, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    colours = cv2.applyColorMap((255 * smooth).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return np.asarray((HEAT * colours + (1 - HEAT) * photograph).round(), dtype=np.uint8)


def _selected(photograph: Pixels, chosen: np.ndarray[Any, np.dtype[np.int64]], grid: tuple[int, int]) -> Pixels:
    """The chosen patches keep their brightness; a line of one pixel, within them, parts them from the others."""
    import cv2

    height, width = photograph.shape[:2]
    patches = np.zeros(grid[0] * grid[1], np.uint8)
    patches[chosen] = 1
    row, column = np.arange(height) * grid[0] // height, np.arange(width) * grid[1] // width
    bright = patches.reshape(grid)[row[:, None], column]
    within = cv2.erode(bright, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    panel = np.asarray((DIMMED * photograph).round(), dtype=np.uint8)
    panel[bright > 0] = FRAME
    panel[within > 0] = photograph[within > 0]
    return panel
