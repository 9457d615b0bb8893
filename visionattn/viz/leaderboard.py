"""Accuracy against parameters of probing heads."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from visionattn.viz.figure import BLUE, GREEN, GREY, ORANGE, as_label, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = [(colour, marker) for marker in "os^D" for colour in (BLUE, ORANGE, GREEN, GREY)]
"""Colours and markers of backbones, in order."""


class Point(NamedTuple):
    """Result of a head on a backbone.

    Attributes:
        panel: name of the data set; each has a panel.
        series: name of the backbone.
        label: name of the head.
        num_parameters: number of trained parameters; heads with 0 are drawn as lines.
        accuracy: mean accuracy, a fraction.
        deviation: standard deviation; 0 for a single run.
    """

    panel: str
    series: str
    label: str
    num_parameters: int
    accuracy: float
    deviation: float = 0.0


def save_leaderboard(points: Sequence[Point], path: str | Path) -> Path:
    """Draw accuracy against the number of trained parameters, on a logarithmic axis, to ``path``.

    Raises:
        ValueError: no results, or a suffix that is not a figure's.
    """
    if not points:
        raise ValueError("there are no results to draw")
    points = [
        point._replace(panel=as_label(point.panel), series=as_label(point.series), label=as_label(point.label))
        for point in points
    ]
    panels = list(dict.fromkeys(point.panel for point in points))
    series = list(dict.fromkeys(point.series for point in points))
    figure = new_figure(6.4 * len(panels), 4.4)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, name in enumerate(series):
            _draw(axes, [point for point in points if point[:2] == (panel, name)], *LOOKS[number % len(LOOKS)])
        if axes.get_xscale() == "log":
            _mark_thousands(axes)
        style_axes(axes, title=panel, xlabel="trained parameters", ylabel="top-1 (%)")
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    if legend := {label: handle for each in found for handle, label in zip(*each, strict=True)}:
        figure.legend(
            list(legend.values()), list(legend), loc="outside lower center", ncols=2, frameon=False, fontsize="small"
        )
    return save_figure(figure, path)


def _draw(axes: "Axes", points: Sequence[Point], colour: str, marker: str) -> None:
    trained = sorted((point for point in points if point.num_parameters), key=lambda point: point.num_parameters)
    look: dict[str, Any] = {"color": colour, "fontsize": "small"}
    if trained:
        axes.set_xscale("log")
        values = np.array([(point.num_parameters, 100 * point.accuracy, 100 * point.deviation) for point in trained])
        x, y, error = values.T
        axes.errorbar(x, y, error, fmt=marker, color=colour, capsize=2, linewidth=1, label=trained[0].series)
    for number, point in enumerate(trained):
        place = (point.num_parameters, 100 * point.accuracy)
        # Labels alternate above and below, so that those of close points are legible.
        axes.annotate(point.label, place, (5, -10 if number % 2 else 4), textcoords="offset points", **look)
    for point in points:
        if not point.num_parameters:
            height = 100 * point.accuracy
            axes.axhline(height, color=colour, linestyle=":", linewidth=1)
            # x is a share of the width, y is in units of the axis.
            axes.text(0.01, height, point.label, transform=axes.get_yaxis_transform(), va="bottom", **look)


def _mark_thousands(axes: "Axes") -> None:
    """Set ticks at 1k, 2k, 5k, 10k and so on."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.1)
    low, high = axes.dataLim.intervalx
    if high < 1.01 * low:  # matplotlib finds no limits around a single power of ten
        axes.set_xlim(low / 2, 2 * high)
