"""Figure of a search for the learning rate."""

from collections.abc import Sequence
from pathlib import Path

from visionattn.viz.figure import BLUE, ORANGE, new_figure, save_figure, style_axes


def save_rate_search(
    rates: Sequence[float],
    losses: Sequence[float],
    middles: Sequence[float],
    means: Sequence[float],
    best: float,
    path: str | Path,
) -> Path:
    """Draw the losses of a training over its rising learning rate.

    Args:
        rates: rates of the updates.
        losses: their losses.
        middles: rates in the middle of windows of updates.
        means: mean losses of these windows.
        best: rate to mark.
        path: file of the figure.
    """
    figure = new_figure(4.6, 3.6)
    axes = figure.subplots()
    axes.plot(rates, losses, color=BLUE, alpha=0.25, linewidth=0.8, label="each update")
    axes.plot(middles, means, color=BLUE, label=f"mean of {len(rates) - len(means) + 1}")
    axes.axvline(best, color=ORANGE, label=f"fastest fall: {best:.2g}")
    axes.set_ylim(min(means) - 0.2 * (means[0] - min(means)), means[0] + (means[0] - min(means)))
    style_axes(axes, title="Search for the learning rate", xlabel="learning rate", ylabel="loss", xscale="log")
    axes.legend(frameon=False, loc="lower left")
    return save_figure(figure, path)
