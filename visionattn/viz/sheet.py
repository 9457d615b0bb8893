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


def title_bar(sheet: Pixels, title: str) -> Pixels:
    """Add a title above a sheet, which becomes wider if the title needs it."""
    import cv2

    if not title:
        return sheet
    font, text = cv2.FONT_HERSHEY_SIMPLEX, as_text(title)
    (needed, _), _ = cv2.getTextSize(text, font, 0.5, 1)
    width = max(sheet.shape[1], needed + 2 * GAP)
    bar = np.full((CAPTION + GAP, width, 3), BACKGROUND, np.uint8)
    cv2.putText(bar, text, (GAP, CAPTION - 2), font, 0.5, INK, 1, cv2.LINE_AA)
    wide = np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0)), constant_values=BACKGROUND)
    return np.concatenate([bar, wide])
