"""Sheets of attention: rows of an image and a map for each head, which may be limited to a window."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from visionattn.viz.heat import draw_heat
from visionattn.viz.image import Pixels, scale_to_height, to_pixels
from visionattn.viz.sheet import BACKGROUND, CAPTION, COLOURS, DIMMED, GAP, caption, join_tiles, stack_rows, title_bar

OUTLINE = COLOURS[1]
SCALE_WIDTH = 120


class HeadRow(NamedTuple):
    """A row of a sheet.

    Attributes:
        image: Path, Pillow image, or bytes [H, W, 3].
        maps: Maps [rows, columns] of finite numbers of at least 0.
        captions: Captions of the image and of each map.
        window: Whether each cell of the maps lies in a window [rows, columns], whose outline is drawn; None for none.
        point: Row and column of a marked cell.
        notes: Text in the corner of each map.
    """

    image: Any
    maps: Any
    captions: Sequence[str]
    window: Any = None
    point: tuple[int, int] | None = None
    notes: Sequence[str] = ()


def draw_head_maps(
    rows: Sequence[HeadRow], *, title: str = "", height: int = 160, quantile: float | None = None
) -> Pixels:
    """Draw rows of an image and maps over it, whose number and size may differ from row to row.

    Args:
        rows: The rows; captions that repeat those of the row above are left out.
        title: Title of the sheet.
        height: Height of an image on the sheet, in pixels.
        quantile: Colours go from the smallest value of a map to this quantile; by default from 0 to the largest value.

    Returns:
        Bytes [H', W', 3].

    Raises:
        ValueError: no rows, captions that do not fit, or maps that are negative or not finite.
        OSError: a file that is missing or not an image.
    """
    if not rows:
        raise ValueError("there are no rows to draw")
    lines: list[Pixels] = []
    above: tuple[str, ...] = ()
    for row in rows:
        image, *tiles = _draw_row(row, height, quantile)
        if (captions := tuple(row.captions)) != above:
            lines.append(join_tiles([caption(text, image.shape[1]) for text in captions]))
            above = captions
        lines.append(join_tiles([image, *tiles]))
    lines.append(_scale("0", "largest value") if quantile is None else _scale("smallest", f"{quantile:.0%} quantile"))
    width = max(line.shape[1] for line in lines)
    wide = [np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=BACKGROUND) for line in lines]
    return title_bar(stack_rows(wide), title)


def _draw_row(row: HeadRow, height: int, quantile: float | None) -> list[Pixels]:
    """Draw the tiles of a row."""
    if len(row.captions) != len(row.maps) + 1:
        raise ValueError(f"an image and {len(row.maps)} maps do not fit {len(row.captions)} captions")
    image = scale_to_height(to_pixels(row.image), height)
    tiles = [image, *(_overlay(image, each, row.window, quantile) for each in row.maps)]
    if row.point is not None:
        shape = np.shape(row.maps[0])
        cell = np.zeros(shape, bool)
        cell[row.point] = True
        tiles = [_outline(tile, cell, (255, 255, 255)) for tile in tiles]
    for number, text in enumerate(row.notes, 1):
        _note(tiles[number], text)
    return tiles


def _overlay(pixels: Pixels, values: Any, window: Any, quantile: float | None) -> Pixels:
    """Draw a map over an image; cell by cell within a window, whose outline parts it from the dim image around."""
    import cv2

    low, high = (0, None) if quantile is None else (None, float(np.quantile(values, quantile)))
    values = np.clip(values, None, high)  # what is cut off would swing in the interpolation
    if window is None:
        return draw_heat(pixels, values, low, high)
    drawn = draw_heat(pixels, cv2.resize(values, pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST), low, high)
    if np.all(window):
        return drawn
    within = _to_pixels(window, pixels)[..., None] > 0
    return _outline(np.where(within, drawn, DIMMED * pixels).astype(np.uint8), window, OUTLINE)


def _outline(pixels: Pixels, cells: Any, colour: tuple[int, int, int]) -> Pixels:
    """Draw a line of one pixel along the inner border of some cells [rows, columns]."""
    import cv2

    within = _to_pixels(cells, pixels)
    kernel = np.ones((3, 3), np.uint8)
    inner = cv2.erode(within, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    drawn = pixels.copy()
    drawn[(within > 0) & (inner == 0)] = colour
    return drawn


def _to_pixels(cells: Any, pixels: Pixels) -> Pixels:
    """Return 1 at each pixel of some cells [rows, columns], 0 elsewhere."""
    import cv2

    size = pixels.shape[1::-1]
    return np.asarray(cv2.resize(np.asarray(cells, np.uint8), size, interpolation=cv2.INTER_NEAREST), np.uint8)


def _note(tile: Pixels, text: str) -> None:
    """Write a few letters in the lower left corner of a tile, white with a dark border."""
    import cv2

    x, y = 4, len(tile) - 5
    border = [(x + right, y + down, (0, 0, 0)) for right in (-1, 0, 1) for down in (-1, 0, 1)]
    for left, base, ink in (*border, (x, y, (255, 255, 255))):
        cv2.putText(tile, text, (left, base), cv2.FONT_HERSHEY_SIMPLEX, 0.36, ink, 1, cv2.LINE_AA)


def _scale(low: str, high: str) -> Pixels:
    """Draw the scale of colours between the names of its ends."""
    import cv2

    ramp = np.tile(np.linspace(0, 255, SCALE_WIDTH).round().astype(np.uint8), (CAPTION - 8, 1))
    bar = np.full((CAPTION, SCALE_WIDTH, 3), BACKGROUND, np.uint8)
    bar[4:-4] = cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[..., ::-1]
    return join_tiles([caption(low, 8 * len(low) + GAP), bar, caption(f"{high} of each map", 220)])
