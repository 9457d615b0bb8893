"""Sheets of segmented images with a legend, and label maps as files."""

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from visionattn.io import as_text, replacing
from visionattn.viz.image import Pixels, save_image, scale_to_height
from visionattn.viz.sheet import BACKGROUND, INK, caption, join_tiles, stack_rows
from visionattn.viz.slots import colour_segments

LEGEND, LINE, SWATCH = 230, 16, 11  # width of a legend, height of its lines, edge of a colour, in pixels
TURN = 0.618034  # the golden ratio: from one class to the next by that part of the circle of hues
SHADES = ((0.8, 0.95), (0.6, 0.65), (0.45, 1.0))  # saturation and value, in turn


class Segmented(Protocol):
    """An image with two label maps, such as `visionattn.probing.segmentation.SegmentedImage`."""

    @property
    def image(self) -> Any:
        """Bytes `[H, W, 3]`."""

    @property
    def labels(self) -> Any:
        """Class of each pixel `[H, W]`, -1 for none."""

    @property
    def predicted(self) -> Any:
        """Predicted class of each pixel `[H, W]`."""


def save_segmentation_sheet(
    examples: Sequence[Segmented], class_names: Sequence[str], path: str | Path, height: int = 224
) -> Path:
    """Draw a row for each image: the image, its true classes, the predicted ones, and a legend.

    A class has the same colour in all rows. A legend lists the classes of its row by their shares of the true and of
    the predicted pixels, in percent; the largest first.

    Args:
        examples: images of one size, with label maps of that size.
        class_names: names of the classes.
        path: file of the sheet.
        height: height of an image on the sheet, in pixels.

    Raises:
        ValueError: no images, maps of another size, or a suffix that is not an image's.
    """
    if not examples:
        raise ValueError("there are no images to draw")
    colours = class_colours(len(class_names))
    rows = [_draw(example, class_names, colours, height) for example in examples]
    widths = [tile.shape[1] for tile in rows[0]]
    titles = ("image", "true classes", "predicted classes", "class: true %, predicted %")
    heading = [caption(text, width) for text, width in zip(titles, widths, strict=True)]
    return save_image(stack_rows([join_tiles(row) for row in (heading, *rows)]), path)


def save_label_map(labels: Any, num_classes: int, path: str | Path) -> Path:
    """Write class numbers `[H, W]` as a grey PNG, of 8 bits if they fit below 255, else of 16 bits."""
    from PIL import Image

    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(np.asarray(labels, dtype=np.uint8 if num_classes < 256 else np.uint16)).save(temporary)
    return path


def class_colours(count: int) -> Pixels:
    """Return a colour for each class `[count, 3]`; near numbers have different hues."""
    shades = [(number * TURN % 1, *SHADES[number % len(SHADES)]) for number in range(count)]
    return np.array([[round(255 * part) for part in hsv_to_rgb(*shade)] for shade in shades], dtype=np.uint8)


def _draw(example: Segmented, names: Sequence[str], colours: Pixels, height: int) -> list[Pixels]:
    image = np.asarray(example.image)
    maps = [np.asarray(labels) for labels in (example.labels, example.predicted)]
    tiles = [image, *(colour_segments(image, labels, colours) for labels in maps)]
    return [*(scale_to_height(tile, height) for tile in tiles), _legend(maps, names, colours, height)]


def _legend(maps: Sequence[Any], names: Sequence[str], colours: Pixels, height: int) -> Pixels:
    """Draw a line for each class of two label maps, as many as there is room for."""
    import cv2

    tile = np.full((height, LEGEND, 3), BACKGROUND, np.uint8)
    known: list[Any] = [labels[labels >= 0] for labels in maps]
    true, predicted = (np.bincount(labels, minlength=len(names)) / (len(labels) or 1) for labels in known)
    found = np.argsort(-(true + predicted), kind="stable")[: height // LINE]
    for line, number in enumerate(number for number in found.tolist() if true[number] + predicted[number]):
        top = line * LINE
        tile[top : top + SWATCH, :SWATCH] = colours[number]
        text = f"{as_text(names[number])}: {100 * true[number]:.0f}, {100 * predicted[number]:.0f}"
        cv2.putText(tile, text, (SWATCH + 5, top + 10), cv2.FONT_HERSHEY_SIMPLEX, 0.4, INK, 1, cv2.LINE_AA)
    return tile
