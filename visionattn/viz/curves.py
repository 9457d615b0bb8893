"""Learning curves of a training run."""

import csv
import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from visionattn.viz.figure import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = tuple[list[float], list[float]]

# Curves of more points than the first number are smoothed; points of curves with fewer than the second are marked.
DENSE, SPARSE = 100, 20

PART = "train_loss_"
"""Prefix of the columns with parts of the training loss."""

RATES = {
    "val_top1": "top-1",
    "val_balanced_top1": "balanced top-1",
    "val_map": "mAP",
    "val_f1": "macro F1",
    "val_top5": "top-5",
    "val_mAP": "mAP",
    "val_rank1": "rank-1",
    "val_fg_ari": "FG-ARI",
    "val_mbo_i": "mBO_i",
    "val_recall": "recall",
    "val_r2": "R²",
}
"""Labels of the validation measures of all kinds of training, all fractions."""


def save_learning_curve(csv_path: str | Path, png_path: str | Path) -> Path:
    """Draw loss, validation accuracy and learning rate over the epochs of a run.

    Args:
        csv_path: ``metrics.csv`` of Lightning's CSVLogger. The columns used are ``step``, ``epoch``, ``train_loss``,
            its parts ``train_loss_…``, ``val_loss``, those of ``RATES`` (fractions), and the first ``lr-…``. Panels
            without columns are left out.
        png_path: file of the figure.

    Raises:
        FileNotFoundError: the CSV file is missing.
        ValueError: the file has no values to draw.
    """
    csv_path = Path(csv_path)
    if not csv_path.exists():
        raise FileNotFoundError(f"no metrics at {csv_path}")
    with csv_path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    rate_column = next((name for name in columns if name.startswith("lr-")), "")
    parts = tuple(name for name in columns if name.startswith(PART))
    groups = (("train_loss", "val_loss"), parts, tuple(RATES), (rate_column,))
    curves = {name: _points(rows, name) for names in groups for name in names}
    panels = [names for names in groups if any(curves[name][0] for name in names)]
    if not panels:
        raise ValueError(f"{csv_path} has no losses, accuracies or learning rates to draw")

    figure = new_figure(4.6 * len(panels), 3.6)
    for axes, names in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if names[0] == "train_loss":
            _draw_losses(axes, curves["train_loss"], curves["val_loss"])
        elif names == parts:
            _draw_parts(axes, {name: curves[name] for name in parts})
        elif names == tuple(RATES):
            _draw_accuracies(axes, {label: curves[name] for name, label in RATES.items() if curves[name][0]})
        else:
            _plot(axes, curves[rate_column], GREY)
            style_axes(axes, title="Learning rate", xlabel="epoch")
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        _finish_epoch_axis(axes)
    return save_figure(figure, png_path)


def _points(rows: Sequence[dict[str, str]], column: str) -> Points:
    """Return completed epochs (fractional, from the step) and values of the rows that have this column.

    A row logged at the end of an epoch, as in validation, is at a whole number.
    """
    steps = [(int(row["step"]), int(row["epoch"])) for row in rows if row.get("step") and row.get("epoch")]
    # Steps count from 0 over all epochs.
    last_step = {epoch: step for step, epoch in sorted(steps)}
    per_epoch = max((step + 1) / (epoch + 1) for epoch, step in last_step.items()) if last_step else math.nan
    positions, values = [], []
    for row in rows:
        if not row.get(column) or not row.get("step"):
            continue
        value = float(row[column])
        if math.isfinite(value):
            positions.append((int(row["step"]) + 1) / per_epoch)
            values.append(value)
    return positions, values


def _plot(axes: "Axes", points: Points, color: str, label: str | None = None) -> None:
    axes.plot(*points, color=color, label=label, marker="." if len(points[0]) < SPARSE else "")


def _draw_losses(axes: "Axes", train: Points, validation: Points) -> None:
    if train[0]:
        _draw_training(axes, train, "training", BLUE)
    if validation[0]:
        _plot(axes, validation, ORANGE, "validation")
    style_axes(axes, title="Loss", xlabel="epoch")
    axes.legend(frameon=False)


def _draw_parts(axes: "Axes", parts: dict[str, Points]) -> None:
    """Draw the parts on a logarithmic scale, as an auxiliary loss may be small."""
    for (name, points), color in zip(parts.items(), cycle((BLUE, ORANGE, GREEN, GREY)), strict=False):
        if points[0]:
            _draw_training(axes, points, name.removeprefix(PART), color)
    style_axes(axes, title="Parts of the training loss", xlabel="epoch", yscale="log")
    axes.legend(frameon=False)


def _draw_training(axes: "Axes", points: Points, label: str, color: str) -> None:
    epochs, losses = points
    if len(losses) <= DENSE:
        _plot(axes, points, color, label)
        return
    axes.plot(epochs, losses, color=color, alpha=0.25, linewidth=0.8)
    window = len(losses) // (DENSE // 4)
    smooth = [sum(losses[i - window : i]) / window for i in range(window, len(losses) + 1)]
    middle = epochs[window // 2 : window // 2 + len(smooth)]
    axes.plot(middle, smooth, color=color, label=f"{label}, mean of {window}")


def _draw_accuracies(axes: "Axes", rates: dict[str, Points]) -> None:
    for (label, (epochs, values)), color in zip(rates.items(), cycle((ORANGE, GREEN)), strict=False):
        _plot(axes, (epochs, [100 * value for value in values]), color, label)
    first, points = next(iter(rates.items()))
    epoch, best = max(zip(*points, strict=True), key=lambda point: point[1])
    title = f"Validation: {first} {100 * best:.2f}% at epoch {epoch:g}"
    style_axes(axes, title=title, xlabel="epoch", ylabel="%")
    axes.legend(frameon=False, loc="lower right")


def _finish_epoch_axis(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.title.set_fontsize("medium")
    if axes.get_xlim()[1] > 2:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
