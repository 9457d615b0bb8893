"""What a model makes of images, on one page: rows of images, of which those in one column belong together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.viz.figure import DPI, new_figure, save_figure
from visionattn.viz.image import Pixels, denormalize

CELL = 0.7  # inches
BACKGROUND = 255


def save_reconstructions(
    rows: Mapping[str, Any], png_path: str | Path, mean: Sequence[float], std: Sequence[float]
) -> Path:
    """Draws rows of images; what stands in one column belongs together.

    Args:
        rows: normalised images [N, C, H, W], tensors or arrays, by the name of their row; C is 1 or 3.
        png_path: where the figure goes.
        mean: of each channel, as they were normalised with.
        std: of each channel.

    Raises:
        ValueError: nothing to draw, or rows of different shapes.
    """
    return save_rows({name: denormalize(images, mean, std) for name, images in rows.items()}, png_path)


def save_rows(rows: Mapping[str, Pixels], png_path: str | Path) -> Path:
    """Draws rows of images, bytes [N, H, W, 3] by the name of their row.

    Raises:
        ValueError: nothing to draw, or rows of different shapes.
    """
    shapes = {images.shape for images in rows.values()}
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 4 or 0 in shape:
        raise ValueError(f"rows are images [N, H, W, 3] of one shape, got {sorted(map(list, shapes))}")
    page = np.concatenate([_row(images) for images in rows.values()])
    columns, height, width = shape[:3]
    cell = max(CELL, width / DPI)  # no pixel is lost
    figure = new_figure(cell * columns + 1, cell * len(rows) * height / width + 0.2)
    axes = figure.subplots()
    axes.imshow(page, interpolation="nearest")
    axes.set_yticks([(height + 1) * (number + 0.5) for number in range(len(rows))], list(rows), fontsize="small")
    axes.tick_params(left=False)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    return save_figure(figure, png_path)


def _row(pixels: Pixels) -> Pixels:
    """Images side by side, with a gap of one pixel at the right and below: bytes [H + 1, N·(W + 1), 3]."""
    framed = np.pad(pixels, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=BACKGROUND)
    return framed.transpose(1, 0, 2, 3).reshape(framed.shape[1], -1, 3)
