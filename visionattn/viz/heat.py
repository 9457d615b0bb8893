"""Heat maps over images: the one overlay that all sheets share."""

from typing import Any

import numpy as np

from visionattn.viz.image import Pixels

OPACITY = 0.6
GREY = np.array([0.299, 0.587, 0.114])  # of red, green and blue in brightness (ITU-R BT.601)


def draw_heat(pixels: Pixels, scores: Any, low: float | None = None, high: float | None = None) -> Pixels:
    """Draw scores as colours over an image in grey, dark for the smallest and bright for the largest.

    Args:
        pixels: bytes [H, W, 3].
        scores: finite numbers [rows, columns], interpolated to the pixels.
        low: score of the darkest colour, by default the smallest.
        high: score of the brightest colour, by default the largest.

    Returns:
        Bytes [H, W, 3].

    Raises:
        ValueError: scores that are no map, or not finite.
    """
    import cv2

    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"a heat map is finite numbers [rows, columns], got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError("a heat map is finite numbers [rows, columns], got NaN or infinity")
    low, high = (values.min() if low is None else low), (values.max() if high is None else high)
    unit = (values - low) / (high - low if high > low else 1.0)
    method = cv2.INTER_AREA if len(unit) > len(pixels) else cv2.INTER_CUBIC
    smooth = cv2.resize(unit, pixels.shape[1::-1], interpolation=method).clip(0, 1)
    colours = cv2.applyColorMap((255 * smooth).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = (pixels @ GREY)[..., None]  # so that all colour is the map's
    return np.asarray((OPACITY * colours + (1 - OPACITY) * grey).round(), dtype=np.uint8)
