"""Sheets of slots: the image, with the true segments and the slots in colours over it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.viz.image import Pixels, denormalize, scale_to_height
from visionattn.viz.reconstructions import save_rows
from visionattn.viz.sheet import COLOURS

STRENGTH = 0.65  # opacity of the colours
SHADES = (0.0, -0.45, 0.5)  # from black at -1 to white at 1, used in turn if there are more segments than colours


def save_slots(
    image: Any,
    segments: Any,
    slots: Any,
    rebuilt: Any,
    png_path: str | Path,
    mean: Sequence[float],
    std: Sequence[float],
) -> Path:
    """Draw images side by side, and below each its true segments, its slots, and the reconstruction.

    Args:
        image: normalised images [N, 3, H, W], tensor or array.
        segments: ids of the true segments [N, H, W]; 0 stays uncoloured.
        slots: slot of each pixel [N, H, W]; a slot has the same colour in all images.
        rebuilt: normalised reconstructions [N, 3, h, w], or None for no such row.
        png_path: file of the figure.
        mean: mean of each channel that the images were normalised with.
        std: standard deviation of each channel.

    Raises:
        ValueError: no images, or maps of another size than the images.
    """
    pixels = denormalize(image, mean, std)
    rows = {
        "image": pixels,
        "segments": colour_segments(pixels, np.asarray(segments) - 1),
        "slots": colour_segments(pixels, slots),
    }
    if rebuilt is not None:
        drawn = np.ascontiguousarray(denormalize(rebuilt, mean, std))
        rows["rebuilt"] = np.stack([scale_to_height(each, pixels.shape[1]) for each in drawn])
    return save_rows(rows, png_path)


def colour_segments(pixels: Pixels, ids: Any, colours: Any = None) -> Pixels:
    """Draw a colour over each segment of images, bytes [..., H, W, 3].

    Pixels with negative ids [..., H, W] stay unchanged. The colours [count, 3] are by default those of `palette`.

    Raises:
        ValueError: the ids have another size than the images.
    """
    ids = np.asarray(ids)
    if ids.shape != pixels.shape[:-1]:
        raise ValueError(f"segments are {list(pixels.shape[:-1])} as the images, got {list(ids.shape)}")
    colours = palette(1 + max(0, int(ids.max(initial=0)))) if colours is None else colours
    strength = np.where(ids < 0, 0, STRENGTH)[..., None]
    blended = (1 - strength) * pixels + strength * colours[np.maximum(ids, 0)]
    return blended.round().astype(np.uint8)


def palette(count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return ``count`` colours [count, 3], from 0 to 255: distinguishable ones first, then darker and lighter ones."""
    base = np.asarray(COLOURS, dtype=np.float64)
    shaded = [base * (1 - abs(shade)) + (255 * shade if shade > 0 else 0) for shade in SHADES]
    return np.resize(np.concatenate(shaded), (count, 3))
