"""Sheets of image tiles: the colours, gaps and captions that several drawings share."""

from collections.abc import Sequence

import numpy as np

from visionattn.io import as_text
from visionattn.viz.image import Pixels

COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
"""Okabe and Ito's colours without black, distinguishable for colour-blind readers."""

GAP, CAPTION = 6, 20  # width of gaps and height of captions, in pixels
BACKGROUND, INK = 255, (40, 40, 40)
DIMMED = 0.45  # brightness of an image where nothing is marked


def join_tiles(tiles: Sequence[Pixels]) -> Pixels:
    """Place tiles side by side, each with a gap on its right and below."""
    gaps = ((0, GAP), (0, GAP), (0, 0))
    return np.concatenate([np.pad(tile, gaps, constant_values=BACKGROUND) for tile in tiles], axis=1)


def stack_rows(rows: Sequence[Pixels]) -> Pixels:
    """Place rows from `join_tiles` below each other, and add the gaps on the left and above."""
    return np.pad(np.concatenate(rows), ((GAP, 0), (GAP, 0), (0, 0)), constant_values=BACKGROUND)


def caption(text: str, width: int, scale: float = 0.42, bar: tuple[int, int, int] | None = None) -> Pixels:
    """Draw the caption of a column, above a bar if it has a colour."""
    import cv2

    tile = np.full((CAPTION, width, 3), BACKGROUND, np.uint8)
    if bar is not None:
        tile[-4:] = bar
    cv2.putText(tile, as_text(text), (0, CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, scale, INK, 1, cv2.LINE_AA)
    return tile
