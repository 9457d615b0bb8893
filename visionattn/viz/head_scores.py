"""Figures of heads: a map of layers × heads for each score, and curves of networks without some heads."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from visionattn.viz.figure import BLUE, GREEN, GREY, ORANGE, as_label, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4
"""Maps side by side."""
MOST_NUMBERS = 200
"""Largest number of cells of a map that have their number written in them."""


def save_head_maps(
    scores: Mapping[str, Mapping[tuple[int, int], float | None]], path: str | Path, title: str = ""
) -> Path:
    """Draw a map of layers × heads for each score.

    Scores with both signs have white for 0. Heads without a score are grey.

    Args:
        scores: For each score, its value for each head, by number of the layer and of the head.
        path: File of the figure.
        title: Title of the figure.

    Raises:
        ValueError: There is no score to draw, or the suffix is not a figure's.
    """
    known = {name: values for name, values in scores.items() if any(value is not None for value in values.values())}
    if not known:
        raise ValueError("there are no scores to draw")
    heads = {head for values in known.values() for head in values}
    layers = sorted({layer for layer, _ in heads})
    width = max(head for _, head in heads) + 1
    rows, columns = math.ceil(len(known) / COLUMNS), min(len(known), COLUMNS)
    figure = new_figure(columns * max(3.2, 0.42 * width + 1.2), rows * max(2.4, 0.26 * len(layers) + 1.0))
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, values) in zip(places, known.items(), strict=False):
        grid = np.full((len(layers), width), np.nan)
        for (layer, head), value in values.items():
            grid[layers.index(layer), head] = np.nan if value is None else value
        drawn = draw_head_map(axes, grid, layers)
        axes.set_title(as_label(name), fontsize="medium")
        figure.colorbar(drawn, ax=axes)
    for axes in places[len(known) :]:
        axes.set_axis_off()
    if title:
        figure.suptitle(as_label(title))
    return save_figure(figure, path)


def draw_head_map(axes: "Axes", grid: Any, layers: Sequence[int], largest: float | None = None) -> Any:
    """Draw a map [layers, heads] of numbers, NaN where there is none, and write them; return what a scale needs.

    Args:
        axes: Where it is drawn.
        grid: The map.
        layers: Number of the layer of each row.
        largest: Size of the number that has the strongest colour, if numbers have both signs; by default the largest.
    """
    from matplotlib import colormaps

    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    both = largest is not None or low < 0 < high
    bound = max(-low, high) if largest is None else largest
    colours = colormaps["RdBu_r" if both else "viridis"].with_extremes(bad="#D0D0D0")
    drawn = axes.imshow(grid, cmap=colours, vmin=-bound if both else low, vmax=bound if both else high, aspect="auto")
    axes.set(xlabel="head", ylabel="layer", xticks=range(grid.shape[1]), yticks=range(len(layers)))
    axes.set_yticklabels([str(layer) for layer in layers])
    if grid.size <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                red, green, blue, _ = drawn.cmap(drawn.norm(value))
                ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
                axes.text(column, row, _short(value), ha="center", va="center", color=ink, fontsize=5)
    return drawn


def _short(value: float) -> str:
    """Return about three digits of a number, without the zero before a point."""
    return f"{value:.0f}" if abs(value) >= 100 else re.sub(r"^(-?)0\.", r"\1.", f"{value:.3g}")


class CutCurve(NamedTuple):
    """A figure of a network without the first heads of an order.

    Attributes:
        label: Name of the order.
        counts: Numbers of heads that are cut.
        values: The figure for each of them.
        is_random: True for a random order, drawn thin and grey.
    """

    label: str
    counts: Sequence[int]
    values: Sequence[float]
    is_random: bool = False


def save_cut_curves(panels: Mapping[str, Sequence[CutCurve]], path: str | Path, title: str = "") -> Path:
    """Draw figures of a network against the number of heads that are cut, a panel for each figure.

    Args:
        panels: Curves by the label of the figure.
        path: File of the figure.
        title: Title of the figure.

    Raises:
        ValueError: There is nothing to draw, or the suffix is not a figure's.
    """
    from matplotlib.ticker import MaxNLocator

    if not panels:
        raise ValueError("there are no curves to draw")
    figure = new_figure(4.8 * len(panels), 3.8)
    colours = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")
    for axes, (name, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        named = [curve for curve in curves if not curve.is_random]
        for curve in curves:
            if curve.is_random:
                axes.plot(curve.counts, curve.values, color=GREY, linewidth=0.8, alpha=0.7)
        if len(named) < len(curves):
            axes.plot([], [], color=GREY, linewidth=0.8, label="random")
        for number, curve in enumerate(named):
            colour = colours[number % len(colours)]
            axes.plot(curve.counts, curve.values, color=colour, marker=".", label=as_label(curve.label))
        style_axes(axes, xlabel="heads cut", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    if title:
        figure.suptitle(as_label(title))
    return save_figure(figure, path)
