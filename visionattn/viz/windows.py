"""Windows of attention: the keys that some queries see, drawn from `Window` itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.viz.figure import as_label, new_figure, save_figure
from visionattn.viz.sheet import COLOURS
from visionattn_kernels import Window

PANEL = 2.2  # inches
EMPTY = 0.95  # brightness of a position that no query sees
STRENGTH = 0.45  # opacity of the colour of a key

WINDOWS: Mapping[str, Window] = {
    "neighborhood (NAT)": Window.neighborhood(5),
    "dilated (DiNAT)": Window.neighborhood(3, dilation=3),
    "strided": Window.neighborhood(5, stride=3),
    "causal": Window.neighborhood(5, is_causal=True),
    "halo (HaloNet)": Window.halo(block_size=4, halo_size=1),
    "blocks (Swin)": Window.blocks(4),
}
"""An example of each kind of window, by its name."""

QUERIES = ((2, 3), (7, 12), (12, 4))
"""Row and column of three queries on a map of 16×16: near the border, in the middle, near a corner of blocks."""


def visible_keys(window: Window, query: tuple[int, int], size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return the keys that a query sees on a map of this size, `[H, W]`.

    Args:
        window: The window.
        query: Row and column of the query on the map of queries, `window.num_queries(size)`.
        size: Height and width of the map of keys.

    Raises:
        ValueError: The query lies outside the map.
    """
    bounds = window.num_queries(size)
    if not all(0 <= place < bound for place, bound in zip(query, bounds, strict=True)):
        raise ValueError(f"a query lies within {bounds[0]} rows and {bounds[1]} columns, got {query}")
    rows, columns = (
        axis.visible(length)[0][place].numpy()[axis.margin(length) :][:length]
        for axis, place, length in zip(window.axes, query, size, strict=True)
    )
    return np.outer(rows, columns)


def save_windows(
    windows: Mapping[str, Window],
    path: str | Path,
    size: tuple[int, int] = (16, 16),
    queries: Sequence[tuple[int, int]] = QUERIES,
) -> Path:
    """Draw a panel for each window: some queries, each in a colour, and the keys that they see in a lighter one.

    Keys that several queries see have the mean of their colours.

    Args:
        windows: Windows by the title of their panel, such as `WINDOWS`; a panel of an empty title has none.
        path: File of the figure.
        size: Height and width of the map of keys.
        queries: Row and column of each query on the map of queries, at most seven.

    Raises:
        ValueError: No windows, more queries than colours, or a query outside the map.
    """
    if not windows or not 0 < len(queries) <= len(COLOURS):
        raise ValueError(
            f"draw at least one window with 1 to {len(COLOURS)} queries, got {len(windows)} and {len(queries)}"
        )
    figure = new_figure(PANEL * len(windows), PANEL * size[0] / size[1] + (0.3 if any(windows) else 0))
    panels = figure.subplots(1, len(windows), squeeze=False)[0]
    for axes, (name, window) in zip(panels, windows.items(), strict=True):
        axes.imshow(colour_keys(window, size, queries))
        axes.set_title(as_label(name), fontsize=11)
        for axis, length in ((axes.xaxis, size[1]), (axes.yaxis, size[0])):
            axis.set_ticks(np.arange(length) - 0.5, labels=[])
        axes.grid(color="white", linewidth=1)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return save_figure(figure, path)


def colour_keys(
    window: Window, size: tuple[int, int], queries: Sequence[tuple[int, int]]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Colour the queries and the keys that they see, `[H, W, 3]` from 0 to 1."""
    colours = np.asarray(COLOURS[: len(queries)]) / 255
    keys = np.stack([visible_keys(window, query, size) for query in queries])
    seen = keys.sum(0)[..., None]
    mean = np.tensordot(keys, colours, axes=(0, 0)) / np.maximum(seen, 1)
    pixels = np.where(seen > 0, STRENGTH * mean + (1 - STRENGTH), EMPTY)
    for (row, column), colour in zip(queries, colours, strict=True):
        pixels[row * window.query_stride[0], column * window.query_stride[1]] = colour
    return pixels
