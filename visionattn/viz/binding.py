"""Images of object binding: how well probes of each depth decode it, and what lies on the same object as a click."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from visionattn.files import as_text
from visionattn.viz.attention_maps import BACKGROUND, CAPTION, COLOURS, DIMMED, GAP, INK
from visionattn.viz.figure import GREY, as_label, new_figure, save_figure, style_axes
from visionattn.viz.image import Pixels, save_image, to_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": "area under ROC"}
LINES = ("-", "--", ":", "-.")
TINT = 0.65  # of the colour, where the same object is certain; the rest is the photograph


class DepthCurve(NamedTuple):
    """What a probe reaches at each depth of a model.

    Attributes:
        model: that has a style of line.
        probe: that has a colour.
        depths: from 0 to 1.
        means: by the measure's name in `PANELS`, a fraction for each depth; None for what cannot be said.
        deviations: the same, standard deviations.
    """

    model: str
    probe: str
    depths: Sequence[float]
    means: Mapping[str, Sequence[float | None]]
    deviations: Mapping[str, Sequence[float | None]]


class Click(NamedTuple):
    """A photograph with a patch of an object, and what is said to be the same object.

    Attributes:
        photograph: path, Pillow image, or bytes [H, W, 3].
        patch: row and column.
        mask: the object, [H, W], bool.
        maps: probabilities [rows, columns], any number of them.
    """

    photograph: Any
    patch: tuple[int, int]
    mask: Any
    maps: Sequence[Any]


def save_depth_curves(curves: Sequence[DepthCurve], chance: float, path: str | Path) -> Path:
    """Draws accuracy, balanced accuracy and area under the ROC curve against depth.

    Args:
        curves: what is drawn; bands are standard deviations.
        chance: accuracy of always saying what is more frequent; that, and 50% of the other measures, are dotted.
        path: where the figure goes.

    Raises:
        ValueError: nothing to draw, or a suffix of no figure.
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
    """Draws a row for each click: the photograph, the object, and each map; what is not the same object is dim.

    Args:
        clicks: with as many maps each.
        captions: of the maps.
        path: where the image goes.
        height: of a photograph on the sheet, in pixels, which is its width, too.

    Raises:
        ValueError: nothing to draw, maps without captions, or a suffix of no image.
    """
    if not clicks or any(len(click.maps) != len(captions) for click in clicks):
        raise ValueError(f"{len(clicks)} clicks do not fit {len(captions)} captions: each has a map for each")
    rows = [_join([_caption(text, height) for text in ("click", "true object", *captions)])]
    rows += [_join(_draw_click(click, height)) for click in clicks]
    page = np.concatenate(rows)
    return save_image(np.pad(page, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=BACKGROUND), path)


def _colours() -> list[str]:
    """Those that can be told apart on white first."""
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
    """Lines for the legend, of these colours and, unless they are solid, styles."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour, linestyle=lines.get(name, "-"), label=name) for name, colour in colours.items()
    ]


def _draw_click(click: Click, height: int) -> list[Pixels]:
    import cv2

    photograph: Any = cv2.resize(to_pixels(click.photograph), (height, height), interpolation=cv2.INTER_AREA)
    rows, columns = np.shape(click.maps[0]) if click.maps else np.shape(click.mask)
    place = [round((index + 0.5) * height / count) for index, count in zip(click.patch, (rows, columns), strict=True)]
    shown = [photograph, *(_overlay(photograph, values) for values in (click.mask, *click.maps))]
    for tile in shown:
        for radius, ink in ((5, (255, 255, 255)), (3, (0, 0, 0))):
            cv2.circle(tile, place[::-1], radius, ink, -1, cv2.LINE_AA)
    return shown


def _overlay(photograph: Pixels, values: Any) -> Pixels:
    """The photograph in grey, darker the lower the values [rows, columns] from 0 to 1, and tinted the higher."""
    import cv2

    size = photograph.shape[1::-1]
    strength = cv2.resize(np.asarray(values, dtype=np.float32), size, interpolation=cv2.INTER_NEAREST)[..., None]
    bright = photograph.mean(-1, keepdims=True) * (DIMMED + (1 - DIMMED) * strength)
    return np.asarray((bright + TINT * strength * (COLOURS[0] - bright)).round(), dtype=np.uint8)


def _caption(text: str, width: int) -> Pixels:
    import cv2

    tile = np.full((CAPTION, width, 3), BACKGROUND, np.uint8)
    cv2.putText(tile, as_text(text), (0, CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
    return tile


def _join(tiles: Sequence[Pixels]) -> Pixels:
    """Tiles side by side, with gaps behind and below them."""
    return np.concatenate(
        [np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=BACKGROUND) for tile in tiles], axis=1
    )
