"""Contact sheets of convolution kernels: all kernels of a network on one page."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionattn.viz.figure import BLUE, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kernel = np.ndarray[Any, Any]

CELL = 2.6  # inches
CHANNELS = 36


def save_contact_sheet(kernels: Mapping[str, Any], png_path: str | Path, channels: int = CHANNELS) -> Path:
    """Draw kernels, with a row for each block and a column for each kind.

    A two-dimensional kernel is drawn as a mosaic of its channels, a kernel of one row as an image of channels by
    positions, and a kernel of one value per channel, or of one channel and one row, as a curve. Red is positive, blue
    negative; the title of a kernel gives its scale.

    Args:
        kernels: tensors or arrays ``[C, kH, kW]`` by name; the part after the last dot of the name is the kind.
        png_path: file of the figure.
        channels: maximum number of channels to draw of each kernel, evenly spaced.

    Raises:
        ValueError: no kernels, a kernel without three axes, or channels below 1.
    """
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    if not kernels:
        raise ValueError("there are no kernels to draw")
    arrays = {name: np.asarray(kernel, dtype=np.float64) for name, kernel in kernels.items()}
    for name, kernel in arrays.items():
        if kernel.ndim != 3:
            raise ValueError(f"a kernel is [C, kH, kW], got {name} of shape {kernel.shape}")
    places = {name: name.rpartition(".")[::2] for name in arrays}
    rows = list(dict.fromkeys(block for block, _ in places.values()))
    columns = list(dict.fromkeys(kind for _, kind in places.values()))
    figure = new_figure(CELL * len(columns), CELL * len(rows))
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for name, kernel in arrays.items():
        block, kind = places[name]
        _draw(grid[rows.index(block)][columns.index(kind)], name, kernel, channels)
    return save_figure(figure, png_path)


def _draw(axes: "Axes", name: str, kernel: Kernel, channels: int) -> None:
    shown = kernel[np.linspace(0, len(kernel) - 1, min(channels, len(kernel))).round().astype(int)]
    share = f"{len(shown)} of " if len(shown) < len(kernel) else ""
    size = "×".join([f"{share}{len(kernel)}", *map(str, kernel.shape[1:])])
    bound = float(np.abs(kernel).max())
    axes.set_title(f"{name}\n{size}, ±{bound:.2g}", fontsize="x-small")
    if kernel.shape[1:] == (1, 1) or kernel.shape[:2] == (1, 1):
        axes.set_axis_on()
        axes.plot(kernel.ravel(), color=BLUE, linewidth=0.8)
        style_axes(axes, xlabel="channel" if len(kernel) > 1 else "position")
        axes.tick_params(labelsize="xx-small")
        return
    image = shown[:, 0] if kernel.shape[1] == 1 else _mosaic(shown)
    limit = bound or 1.0
    aspect: Any = "auto" if kernel.shape[1] == 1 else "equal"
    axes.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", aspect=aspect)


def _mosaic(kernel: Kernel) -> Kernel:
    """Place channels in rows, with gaps of one pixel (NaN, which is not drawn)."""
    count, height, width = kernel.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    tiles = np.full((rows * columns, height + 1, width + 1), np.nan)
    tiles[:count, :height, :width] = kernel
    page = tiles.reshape(rows, columns, height + 1, width + 1).swapaxes(1, 2)
    return page.reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]
