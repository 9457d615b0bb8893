"""Figures of object binding: accuracy of probes against depth, and same-object maps of clicks."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from visionattn.viz.figure import GREY, as_label, new_figure, save_figure, style_axes
from visionattn.viz.image import Pixels, save_image, to_pixels
from visionattn.viz.sheet import COLOURS, DIMMED, caption, join_tiles, stack_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": "area under ROC"}
LINES = ("-", "--", ":", "-.")
TINT = 0.65  # opacity of the colour at probability 1


class DepthCurve(NamedTuple):
    """Rates of a probe at each depth of a model.

    Attributes:
        model: label of the model; each has a line style.
        probe: name of the probe; each has a colour.
        depths: depths of the layers, from 0 to 1.
        means: for each measure in `PANELS`, a fraction for each depth, or None if unknown.
        deviations: the same for standard deviations.
    """

    model: str
    probe: str
    depths: Sequence[float]
    means: Mapping[str, Sequence[float | None]]
    deviations: Mapping[str, Sequence[float | None]]


class Click(NamedTuple):
    """An image with a clicked patch of an object, and maps of the same object.

    Attributes:
        image: path, Pillow image, or bytes [H, W, 3].
        patch: row and column of the patch.
        mask: whether each pixel belongs to the object, [H, W], bool.
        maps: any number of maps of the probability of the same object, [rows, columns].
    """

    image: Any
    patch: tuple[int, int]
    mask: Any
    maps: Sequence[Any]


def save_depth_curves(curves: Sequence[DepthCurve], chance: float, path: str | Path) -> Path:
    """Draw accuracy, balanced accuracy and area under the ROC curve against depth.

    Args:
        curves: curves to draw; bands show standard deviations.
        chance: accuracy of always giving the more frequent answer, drawn dotted; 50% in the other panels.
        path: file of the figure.

    Raises:
        ValueError: no curves, or a suffix that is not a figure's.
    """
    if not curves:
        raise ValueError("there are no results to draw")
    curves = [curve._replace(model=as_label(curve.model), probe=as_label(curve.probe)) for curve in curves]
    models = list(dict.fromkeys(curve.model for curve in curves))
    probes = list(dict.fromkeys(curve.probe for curve in curves))
    colours = dict(zip(probes, cycle(_colours()), strict=False))
    lines = dict(zip(models, cycle(LINES), strict=False))
    figure = new_figure(3.9 * len(PANELS), 4.2)
    for axes, (measure, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for curve in curves:
            _draw_curve(axes, curve, measure, colours[curve.probe], lines[curve.model])
        axes.axhline(100 * (chance if measure == "accuracy" else 0.5), color=GREY, linestyle=":", linewidth=1)
        style_axes(axes, title=f"Same object: {label}", xlabel="depth of the layer", ylabel="%")
        axes.title.set_fontsize("medium")
    options: dict[str, Any] = {"frameon": False, "fontsize": "small"}
    figure.legend(handles=_handles(colours, {}), loc="outside lower center", ncols=len(probes), **options)
    if len(models) > 1:
        figure.legend(handles=_handles(dict.fromkeys(models, "black"), lines), loc="outside upper center", **options)
    return save_figure(figure, path)


def save_similarity_sheet(
    clicks: Sequence[Click], captions: Sequence[str], path: str | Path, height: int = 128
) -> Path:
    """Draw a row for each click: the image, the object, and each map; the brighter, the likelier the same object.

    Args:
        clicks: clicks with an equal number of maps.
        captions: captions of the maps.
        path: file of the image.
        height: height and width of an image on the sheet, in pixels.

    Raises:
        ValueError: no clicks, maps without captions, or a suffix that is not an image's.
    """
    if not clicks or any(len(click.maps) != len(captions) for click in clicks):
        raise ValueError(f"{len(clicks)} clicks do not fit {len(captions)} captions: each has a map for each")
    rows = [join_tiles([caption(text, height) for text in ("click", "true object", *captions)])]
    rows += [join_tiles(_draw_click(click, height)) for click in clicks]
    return save_image(stack_rows(rows), path)


def _colours() -> list[str]:
    """Return the colours as hex codes, those with most contrast on white first."""
    *first, yellow, blue, red, purple = (f"#{r:02X}{g:02X}{b:02X}" for r, g, b in COLOURS)
    return [*first, blue, red, purple, GREY, yellow]


def _draw_curve(axes: "Axes", curve: DepthCurve, measure: str, colour: str, line: str) -> None:
    means, deviations = (
        np.array([np.nan if value is None else 100 * value for value in values[measure]])
        for values in (curve.means, curve.deviations)
    )
    axes.plot(curve.depths, means, color=colour, linestyle=line, marker=".", markersize=4, linewidth=1.3)
    if np.nan_to_num(deviations).any():
        axes.fill_between(curve.depths, means - deviations, means + deviations, color=colour, alpha=0.15, linewidth=0)


def _handles(colours: Mapping[str, str], lines: Mapping[str, Any]) -> list[Any]:
    """Make lines for the legend, with colours and optional styles."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour, linestyle=lines.get(name, "-"), label=name) for name, colour in colours.items()
    ]


def _draw_click(click: Click, height: int) -> list[Pixels]:
    import cv2

    image: Any = cv2.resize(to_pixels(click.image), (height, height), interpolation=cv2.INTER_AREA)
    rows, columns = np.shape(click.maps[0]) if click.maps else np.shape(click.mask)
    place = [round((index + 0.5) * height / count) for index, count in zip(click.patch, (rows, columns), strict=True)]
    shown = [image, *(_overlay(image, values) for values in (click.mask, *click.maps))]
    for tile in shown:
        for radius, ink in ((5, (255, 255, 255)), (3, (0, 0, 0))):
            cv2.circle(tile, place[::-1], radius, ink, -1, cv2.LINE_AA)
    return shown


def _overlay(image: Pixels, values: Any) -> Pixels:
    """Draw the image in grey, dark where the values [rows, columns] are 0 and bright and tinted where they are 1."""
    import cv2

    size = image.shape[1::-1]
    strength = cv2.resize(np.asarray(values, dtype=np.float32), size, interpolation=cv2.INTER_NEAREST)[..., None]
    bright = image.mean(-1, keepdims=True) * (DIMMED + (1 - DIMMED) * strength)
    return np.asarray((bright + TINT * strength * (COLOURS[0] - bright)).round(), dtype=np.uint8)
