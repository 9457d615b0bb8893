"""Sheets of strips: for each image a few tiles side by side, in as many columns as fit a page."""

import math
from collections.abc import Sequence

import numpy as np

from visionattn.viz.image import Pixels
from visionattn.viz.sheet import BACKGROUND, GAP, caption, join_tiles, stack_rows, title_bar

BETWEEN = 2 * GAP  # additional gap between columns
ASPECT = 1.4  # largest ratio of height to width of a page, unless there is one column per image


def draw_strips(
    strips: Sequence[Sequence[Pixels]], captions: Sequence[str], labels: Sequence[str] = (), title: str = ""
) -> Pixels:
    """Draw strips below each other, from the top of the first column to the bottom of the last.

    Args:
        strips: K tiles for each of P images, all of one size.
        captions: captions of the K tiles, above each column.
        labels: a line above each strip; none for no lines.
        title: title of the sheet.

    Returns:
        Bytes [H', W', 3].

    Raises:
        ValueError: no strips, or another number of captions or labels.
    """
    if not strips or {*map(len, strips)} != {len(captions)} or len(labels) not in (0, len(strips)):
        raise ValueError(
            f"{len(captions)} captions and {len(labels)} labels do not fit {len(strips)} strips of "
            f"{sorted({*map(len, strips)})} tiles"
        )
    drawn = [join_tiles(tiles) for tiles in strips]
    width = drawn[0].shape[1]
    if labels:
        drawn = [np.concatenate([caption(text, width), strip]) for text, strip in zip(labels, drawn, strict=True)]
    per_column = _strips_per_column(len(drawn), drawn[0].shape[0], width)
    header = join_tiles([caption(text, tile.shape[1]) for text, tile in zip(captions, strips[0], strict=True)])
    columns = []
    for start in range(0, len(drawn), per_column):
        column = np.concatenate([header, *drawn[start : start + per_column]])
        missing = len(header) + per_column * len(drawn[0]) - len(column)
        apart = BETWEEN if start + per_column < len(drawn) else 0
        columns.append(np.pad(column, ((0, missing), (0, apart), (0, 0)), constant_values=BACKGROUND))
    return title_bar(stack_rows([np.concatenate(columns, axis=1)]), title)


def _strips_per_column(count: int, height: int, width: int) -> int:
    """Return the largest number of strips in a column that keeps the page no longer than `ASPECT`."""
    for columns in range(1, count):
        rows = math.ceil(count / columns)
        if rows * height <= ASPECT * columns * width:
            return rows
    return 1
