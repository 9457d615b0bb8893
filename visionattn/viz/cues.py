"""Figures of two cues in conflict: which heads carry each, and which cue wins without them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionattn.viz.figure import BLUE, GREY, ORANGE, as_label, new_figure, save_figure, style_axes
from visionattn.viz.head_scores import draw_head_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"digit": BLUE, "photo": ORANGE, "random": GREY}
PANELS = {"digit": "another digit", "photo": "another photo"}


def save_cue_figure(
    effects: Mapping[str, Any], wins: Mapping[str, Mapping[int, Sequence[float]]], path: str | Path, title: str = ""
) -> Path:
    """Draw a map of layers and heads for each cue, and how often the digit wins without some heads.

    Args:
        effects: For ``digit`` and ``photo``, the change of logit(digit) - logit(photo) if a head sees another one,
            [layers, heads]; NaN where there is no head.
        wins: For heads of the side ``digit``, of ``photo``, and ``random``: by number of heads that are cut, the share
            of images in which the digit wins, one for each order.
        path: File of the figure.
        title: Title of the figure.

    Raises:
        ValueError: A suffix that is not a figure's.
    """
    figure = new_figure(11.5, 3.6)
    *panels, axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    largest = max(np.nanmax(np.abs(effects[cue])) for cue in PANELS) or 1.0
    for panel, (cue, label) in zip(panels, PANELS.items(), strict=True):
        drawn = draw_head_map(panel, effects[cue], range(len(effects[cue])), largest)
        panel.set_title(f"Head sees {label}")
    figure.colorbar(drawn, ax=panels, label="change of logit(digit) − logit(photo)")
    for side, by_number in wins.items():
        _draw_wins(axes, by_number, COLOURS[side], f"{side} heads")
    style_axes(axes, title="The digit wins", xlabel="heads cut", ylabel="% of conflicts", ylim=(0, 100))
    axes.legend(frameon=False)
    if title:
        figure.suptitle(as_label(title))
    return save_figure(figure, path)


def _draw_wins(axes: "Axes", by_number: Mapping[int, Sequence[float]], colour: str, label: str) -> None:
    """Draw means over orders, and the range of several orders."""
    numbers = sorted(by_number)
    shares = [100 * np.asarray(by_number[number]) for number in numbers]
    axes.plot(numbers, [each.mean() for each in shares], color=colour, marker="o", markersize=4, label=label)
    if max(map(len, shares)) > 1:
        low, high = [each.min() for each in shares], [each.max() for each in shares]
        axes.fill_between(numbers, low, high, color=colour, alpha=0.15, linewidth=0)
