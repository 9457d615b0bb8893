"""Ranked lists: a query and its nearest gallery images, right or wrong."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visionattn.viz.image import Pixels, save_image, scale_to_height, to_pixels
from visionattn.viz.sheet import BACKGROUND, INK

RIGHT, WRONG, QUERY, UNJUDGED = (0, 158, 115), (214, 39, 40), (90, 90, 90), (225, 225, 225)
FRAME, GAP, CAPTION = 4, 8, 22  # pixels


class RankedList(NamedTuple):
    """Ranked list of one query.

    Attributes:
        name: name of the file, without its suffix.
        query: path, Pillow image, or bytes [H, W, 3].
        gallery: gallery images in the same formats, nearest first.
        matches: whether each gallery image shows the identity of the query.
    """

    name: str
    query: Any
    gallery: Sequence[Any]
    matches: Sequence[bool]


def save_ranked_lists(folder: str | Path, lists: Iterable[RankedList], height: int = 192) -> list[Path]:
    """Write ``NAME.png`` for each list into a folder, which is made if it is missing."""
    return [
        save_image(draw_ranked_list(query, gallery, matches, height=height), Path(folder) / f"{name}.png")
        for name, query, gallery, matches in lists
    ]


def draw_ranked_list(query: Any, gallery: Sequence[Any], matches: Sequence[bool], *, height: int = 192) -> Pixels:
    """Draw the query in a grey frame, then the gallery: right images in green frames, wrong ones in red.

    The rank is below each image, with a cross for wrong ones, for colour-blind readers. Images are as in `RankedList`,
    and ``height`` pixels high; the aspect ratio is kept.

    Returns:
        Bytes [H', W', 3].

    Raises:
        ValueError: no gallery, another number of matches, or an array that is not an image.
        OSError: a file that is missing or not an image.
    """
    if not gallery or len(gallery) != len(matches):
        raise ValueError(f"a ranked list needs an image for each match: got {len(gallery)} and {len(matches)}")
    if height < 1:
        raise ValueError(f"height must be at least 1, got {height}")
    tiles = [_tile(query, height, QUERY, "query")]
    for rank, (image, right) in enumerate(zip(gallery, matches, strict=True), start=1):
        tiles.append(_tile(image, height, RIGHT if right else WRONG, f"{rank}" if right else f"{rank} x"))
    space = np.full((len(tiles[0]), GAP, 3), BACKGROUND, np.uint8)
    return np.concatenate([tiles[0], space, *tiles[1:], space], axis=1)


class Neighbours(NamedTuple):
    """A query and the images that are most similar to it, without labels; images are as in `RankedList`.

    Attributes:
        query: the query.
        gallery: images of the gallery, most similar first.
        similarities: similarity of each of them to the query.
    """

    query: Any
    gallery: Sequence[Any]
    similarities: Sequence[float]


def save_neighbours(path: str | Path, rows: Iterable[Neighbours], height: int = 128) -> Path:
    """Write a sheet with a row for each query: the query in a dark frame, then ranks with their similarities."""
    drawn = [draw_neighbours(*row, height=height) for row in rows]
    if not drawn:
        raise ValueError("there are no queries to draw")
    width = max(row.shape[1] for row in drawn)
    wide = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=BACKGROUND) for row in drawn]
    return save_image(np.concatenate(wide), path)


def draw_neighbours(query: Any, gallery: Sequence[Any], similarities: Sequence[float], *, height: int = 128) -> Pixels:
    """Draw a row of a sheet, as `save_neighbours` does, and return its bytes [H', W', 3]."""
    tiles = [_tile(query, height, QUERY, "query")]
    for rank, (image, similarity) in enumerate(zip(gallery, similarities, strict=True), start=1):
        tiles.append(_tile(image, height, UNJUDGED, f"{rank}: {similarity:.3f}"))
    space = np.full((len(tiles[0]), GAP, 3), BACKGROUND, np.uint8)
    return np.concatenate([tiles[0], space, *tiles[1:], space], axis=1)


def _tile(image: Any, height: int, colour: tuple[int, int, int], caption: str) -> Pixels:
    """Draw an image of this height in its frame, above its caption, with gaps on the left and above."""
    import cv2

    inner = scale_to_height(to_pixels(image), height)
    width = inner.shape[1]
    tile = np.full((height + 2 * FRAME + CAPTION, width + 2 * FRAME, 3), BACKGROUND, np.uint8)
    tile[: height + 2 * FRAME] = colour
    tile[FRAME : FRAME + height, FRAME : FRAME + width] = inner
    cv2.putText(
        tile, caption, (FRAME, height + 2 * FRAME + CAPTION - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.5, INK, 1, cv2.LINE_AA
    )
    return np.pad(tile, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=BACKGROUND)
