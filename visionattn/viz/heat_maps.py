"""Sheets of heat maps: images and any number of maps over each, from 0 (dark) to the largest value (bright)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from visionattn.viz.image import Pixels, scale_to_height, to_pixels
from visionattn.viz.sheet import BACKGROUND, CAPTION, COLOURS, GAP, caption, join_tiles, stack_rows, title_bar

HEAT = 0.65  # opacity of a heat map
DIMMED = 0.4  # brightness outside of a window
OUTLINE = COLOURS[1]
SCALE_WIDTH = 120


class HeatRow(NamedTuple):
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


def draw_heat_maps(
    images: Sequence[Any], maps: Any, captions: Sequence[str], *, title: str = "", height: int = 160
) -> Pixels:
    """Draw a row for each image: the image, and each of its maps over it, from 0 (dark) to its largest value (bright).

    Args:
        images: P paths, Pillow images, or bytes [H, W, 3].
        maps: K non-negative maps for each image, [P, K, rows, columns].
        captions: captions of the K maps.
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
    rows = [HeatRow(image, each, ("image", *captions)) for image, each in zip(images, values, strict=True)]
    return draw_heat_rows(rows, title=title, height=height)


def draw_heat_rows(rows: Sequence[HeatRow], *, title: str = "", height: int = 160) -> Pixels:
    """Draw rows of an image and maps over it, whose number and size may differ from row to row.

    Args:
        rows: The rows; captions that repeat those of the row above are left out.
        title: Title of the sheet.
        height: Height of an image on the sheet, in pixels.

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
        image, *tiles = _draw_row(row, height)
        if (captions := tuple(row.captions)) != above:
            lines.append(join_tiles([caption(text, image.shape[1]) for text in captions]))
            above = captions
        lines.append(join_tiles([image, *tiles]))
    lines.append(_scale())
    width = max(line.shape[1] for line in lines)
    wide = [np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=BACKGROUND) for line in lines]
    return title_bar(stack_rows(wide), title)


def _draw_row(row: HeatRow, height: int) -> list[Pixels]:
    """Draw the tiles of a row."""
    if len(row.captions) != len(row.maps) + 1:
        raise ValueError(f"an image and {len(row.maps)} maps do not fit {len(row.captions)} captions")
    image = scale_to_height(to_pixels(row.image), height)
    tiles = [image, *(heat(image, each, row.window) for each in row.maps)]
    if row.point is not None:
        shape = np.shape(row.maps[0])
        cell = np.zeros(shape, bool)
        cell[row.point] = True
        tiles = [_outline(tile, cell, (255, 255, 255)) for tile in tiles]
    for number, text in enumerate(row.notes, 1):
        _note(tiles[number], text)
    return tiles


def heat(pixels: Pixels, values: Any, window: Any = None) -> Pixels:
    """Draw a map [rows, columns] as colours over an image, from 0 (dark) to its largest value (bright).

    Args:
        pixels: bytes [H, W, 3].
        values: finite numbers of at least 0.
        window: whether each value counts; others leave the image dim, and an outline parts both. By default all do.

    Raises:
        ValueError: values that are negative or not finite, or of other than two axes.
    """
    import cv2

    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2 or not found.size or not np.isfinite(found).all() or found.min() < 0:
        raise ValueError(f"a heat map is [rows, columns] of finite numbers of at least 0, got {list(found.shape)}")
    size = pixels.shape[1::-1]
    method = cv2.INTER_CUBIC if window is None else cv2.INTER_NEAREST
    unit = cv2.resize(found / (found.max() or 1.0), size, interpolation=method).clip(0, 1)
    colours = cv2.applyColorMap((255 * unit).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = pixels.mean(-1, keepdims=True)
    drawn = np.asarray((HEAT * colours + (1 - HEAT) * grey).round(), dtype=np.uint8)
    if window is None or np.all(window):
        return drawn
    within = cv2.resize(np.asarray(window, np.uint8), size, interpolation=cv2.INTER_NEAREST)[..., None] > 0
    dim = np.asarray((DIMMED * pixels).round(), dtype=np.uint8)
    return _outline(np.where(within, drawn, dim), np.asarray(window), OUTLINE)


def _outline(pixels: Pixels, cells: Any, colour: tuple[int, int, int]) -> Pixels:
    """Draw a line of one pixel along the inner border of some cells [rows, columns]."""
    import cv2

    within = cv2.resize(cells.astype(np.uint8), pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    kernel = np.ones((3, 3), np.uint8)
    inner = cv2.erode(within, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    drawn = pixels.copy()
    drawn[(within > 0) & (inner == 0)] = colour
    return drawn


def _note(tile: Pixels, text: str) -> None:
    """Write a few letters in the lower left corner of a tile."""
    import cv2

    place, font = (4, len(tile) - 5), cv2.FONT_HERSHEY_SIMPLEX
    for ink, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(tile, text, place, font, 0.36, ink, width, cv2.LINE_AA)


def _scale() -> Pixels:
    """Draw the scale of colours."""
    import cv2

    ramp = np.tile(np.linspace(0, 255, SCALE_WIDTH).round().astype(np.uint8), (CAPTION - 8, 1))
    bar = np.full((CAPTION, SCALE_WIDTH, 3), BACKGROUND, np.uint8)
    bar[4:-4] = cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[..., ::-1]
    return join_tiles([caption("0", 2 * GAP), bar, caption("largest value of each map", 220)])
