"""Pages of image rows, such as inputs and reconstructions; the images of a column belong together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.viz.figure import DPI, new_figure, save_figure
from visionattn.viz.image import Pixels, denormalize
from visionattn.viz.sheet import BACKGROUND

CELL = 0.7  # inches


def save_reconstructions(
    rows: Mapping[str, Any], png_path: str | Path, mean: Sequence[float], std: Sequence[float]
) -> Path:
    """Draw rows of normalised images.

    Args:
        rows: normalised images [N, C, H, W], tensors or arrays, by the name of their row.
        png_path: file of the figure.
        mean: mean of each channel that the images were normalised with.
        std: standard deviation of each channel.

    Raises:
        ValueError: no images, or rows of different shapes.
    """
    return save_rows({name: denormalize(images, mean, std) for name, images in rows.items()}, png_path)


def save_rows(rows: Mapping[str, Pixels], png_path: str | Path) -> Path:
    """Draw rows of images, bytes [N, H, W, 3] of one shape, by the name of their row."""
    shapes = {images.shape for images in rows.values()}
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 4 or 0 in shape:
        raise ValueError(f"rows are images [N, H, W, 3] of one shape, got {sorted(map(list, shapes))}")
    page = np.concatenate([_row(images) for images in rows.values()])
    columns, height, width = shape[:3]
    cell = max(CELL, width / DPI)  # so that no pixel is lost
    figure = new_figure(cell * columns + 1, cell * len(rows) * height / width + 0.2)
    axes = figure.subplots()
    axes.imshow(page, interpolation="nearest")
    axes.set_anchor("E")  # the space for the names of the rows is on the left
    axes.set_yticks([(height + 1) * (number + 0.5) for number in range(len(rows))], list(rows), fontsize="small")
    axes.tick_params(left=False)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    return save_figure(figure, png_path)


def _row(pixels: Pixels) -> Pixels:
    """Place images side by side, with gaps of one pixel on the right and below: bytes [H + 1, N·(W + 1), 3]."""
    framed = np.pad(pixels, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=BACKGROUND)
    return framed.transpose(1, 0, 2, 3).reshape(framed.shape[1], -1, 3)
