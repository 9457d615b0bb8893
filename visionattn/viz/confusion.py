"""Confusion matrices of 2 to 1000 classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionattn.viz.figure import as_label, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Matrix = np.ndarray[Any, Any]

NUMBERED = 20  # most classes for which cells show counts
NAMED = 60  # most classes for which axes show names
LONGEST_NAME = 24
LISTED = 25  # mistakes
CELLS = 250  # most cells on each axis: more would be finer than pixels


def save_confusion_matrix(matrix: Any, class_names: Sequence[str], png_path: str | Path) -> Path:
    """Draw a confusion matrix; colours are shares of each true class.

    With many classes the diagonal hides the rest, so the most frequent mistakes are listed next to the matrix.

    Args:
        matrix: counts, tensor or array ``[classes, classes]``; rows are true classes, columns predicted ones.
        class_names: name of each class; if empty, classes are numbered.
        png_path: file of the figure.

    Raises:
        ValueError: the matrix is not square, or of another size than ``class_names``.
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(matrix).astype(np.int64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"a confusion matrix is square, got shape {counts.shape}")
    size = len(counts)
    names = [_shorten(name) for name in class_names] or [str(index) for index in range(size)]
    if len(names) != size:
        raise ValueError(f"{len(names)} class names for a confusion matrix of {size} classes")
    # A class without images has a row of zeros.
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    side = min(3.0 + 0.3 * size, 8.0)
    listed = size > NUMBERED
    figure = new_figure(side + (5.0 if listed else 1.2), side)
    widths = [side + 1.2, 3.8] if listed else [side + 1.2]
    panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    axes = panels[0]
    pooled, pool = _pool(shares)
    # The square root makes rare mistakes visible next to a diagonal near 1.
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    extent = (-0.5, len(pooled) * pool - 0.5, len(pooled) * pool - 0.5, -0.5)
    image = axes.imshow(pooled, cmap="Blues", norm=norm, extent=extent, interpolation="nearest")
    label = "share of the true class" + (f", largest of {pool}×{pool} classes" if pool > 1 else "")
    figure.colorbar(image, ax=axes, label=label, fraction=0.046, pad=0.02, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    accuracy = counts.trace() / max(counts.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    axes.set_title(f"{accuracy:.2%} of {counts.sum():,} images are right", fontsize="medium")
    _label_classes(axes, names)
    if listed:
        _list_mistakes(panels[1], counts, names)
    else:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.35 else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=color, fontsize=8)
    return save_figure(figure, png_path)


def _pool(shares: Matrix) -> tuple[Matrix, int]:
    """Return the largest share in each square of classes, so that no cell is lost, and the side of the squares."""
    pool = -(-len(shares) // CELLS)
    padding = -len(shares) % pool
    padded = np.pad(shares, (0, padding))
    cells = len(padded) // pool
    return padded.reshape(cells, pool, cells, pool).max(axis=(1, 3)), pool


def _label_classes(axes: "Axes", names: Sequence[str]) -> None:
    if len(names) > NAMED:
        return
    fontsize = 8 if len(names) <= NUMBERED else 6
    upright = max(map(len, names)) * len(names) > 40
    axes.set_xticks(range(len(names)), names, fontsize=fontsize, rotation=90 if upright else 0)
    axes.set_yticks(range(len(names)), names, fontsize=fontsize)


def _list_mistakes(axes: "Axes", counts: Matrix, names: Sequence[str]) -> None:
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    most = np.argsort(mistakes, axis=None, kind="stable")[::-1][:LISTED]
    axes.set_axis_off()
    axes.text(0, 1, "Most frequent mistakes: true → predicted", va="top", fontsize=9, transform=axes.transAxes)
    for line, (row, column) in enumerate(zip(*np.unravel_index(most, mistakes.shape), strict=True)):
        if mistakes[row, column]:
            height = 0.93 - 0.035 * line
            axes.text(0.08, height, f"{mistakes[row, column]:,}", ha="right", fontsize=8, transform=axes.transAxes)
            axes.text(0.12, height, f"{names[row]} → {names[column]}", fontsize=8, transform=axes.transAxes)


def _shorten(name: str) -> str:
    return as_label(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…")
