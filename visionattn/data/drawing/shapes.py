"""Plain shapes and patterns, drawn in integer arithmetic so that every machine draws the same."""

import math
from typing import Any, Literal, get_args

import numpy as np

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Levels = np.ndarray[Any, np.dtype[np.uint8]]
Points = np.ndarray[Any, np.dtype[np.int64]]
Shape = Literal["circle", "ellipse", "square", "triangle", "star", "ring", "cross"]
Pattern = Literal["plain", "gradient", "stripes", "checks", "dots"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
SUBPIXELS = 16
"""Subpixels per pixel, the unit of places and sizes."""
LEVELS = 16
"""Number of shades of a pattern."""

FRACTION = 14
COSINES = tuple(round(math.cos(math.radians(degree)) * (1 << FRACTION)) for degree in range(360))
"""Cosines of whole degrees in fixed point, so that the rounding of a processor does not matter."""
RADIUS = 1024  # of the outlines


def draw_shape(shape: Shape, centre: tuple[int, int], radius: int, turn: int, size: tuple[int, int]) -> Mask:
    """Draw a filled shape as a mask [H, W].

    Args:
        shape: name of the shape.
        centre: x and y in subpixels, from the middle of the first pixel.
        radius: radius of the circle around the shape, in subpixels.
        turn: clockwise rotation in degrees.
        size: (H, W) in pixels.
    """
    import cv2

    mask = np.zeros(size, np.uint8)
    contours = [_place(outline, centre, radius, turn) for outline in OUTLINES[shape]]
    cv2.fillPoly(mask, contours, 1, lineType=cv2.LINE_8, shift=SUBPIXELS.bit_length() - 1)
    return mask.view(np.bool_)


def draw_pattern(pattern: Pattern, period: int, turn: int, size: tuple[int, int]) -> Levels:
    """Draw a pattern as shades [H, W] from 0 to ``LEVELS`` - 1.

    Args:
        pattern: name of the pattern; ``plain`` has one shade, ``gradient`` all, the others the two outermost.
        period: period in pixels, at least 2; a gradient goes from one edge to the other.
        turn: clockwise rotation in degrees; in quarters for a gradient.
        size: (H, W) in pixels.
    """
    if pattern == "plain":
        return np.zeros(size, np.uint8)
    if pattern == "gradient":
        rises = np.arange(LEVELS * size[turn // 90 % 2], dtype=np.int64)[::LEVELS] // size[turn // 90 % 2]
        rises = rises[::-1] if turn // 180 % 2 else rises
        return np.broadcast_to(rises if turn // 90 % 2 else rises[:, None], size).astype(np.uint8)
    cosine, sine = _direction(turn)
    y, x = np.arange(size[0])[:, None], np.arange(size[1])
    u = ((x * cosine + y * sine) >> FRACTION) % period
    if pattern == "stripes":
        second = u < period // 2
    else:
        v = ((y * cosine - x * sine) >> FRACTION) % period
        if pattern == "checks":
            second = (u < period // 2) ^ (v < period // 2)
        else:
            second = (2 * u + 1 - period) ** 2 + (2 * v + 1 - period) ** 2 < period**2 // 2
    return second * np.uint8(LEVELS - 1)


def _direction(turn: int) -> tuple[int, int]:
    """Return cosine and sine."""
    return COSINES[turn % 360], COSINES[(turn - 90) % 360]


def _place(outline: Points, centre: tuple[int, int], radius: int, turn: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    cosine, sine = _direction(turn)
    unit = RADIUS << FRACTION
    turned = outline @ np.array([[cosine, sine], [-sine, cosine]]) * radius
    return ((turned + unit // 2) // unit + centre).astype(np.int32)


def _regular(count: int, *radii: int) -> Points:
    """Return a polygon of ``count`` corners, the first at the top, with alternating radii."""
    corners = [(_direction(360 * corner // count - 90), radii[corner % len(radii)]) for corner in range(count)]
    return np.array([[(part * radius) >> FRACTION for part in direction] for direction, radius in corners])


def _cross(arm: int) -> Points:
    """Return a cross with arms of half width ``arm``."""
    quarter = np.array([(-arm, -RADIUS), (arm, -RADIUS), (arm, -arm)])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter, quarter @ turn, quarter @ turn @ turn, quarter @ turn @ turn @ turn])


_ROUND = _regular(60, RADIUS)

OUTLINES: dict[Shape, list[Points]] = {
    "circle": [_ROUND],
    "ellipse": [_ROUND // (1, 2)],
    "square": [_regular(4, RADIUS)],
    "triangle": [_regular(3, RADIUS)],
    "star": [_regular(10, RADIUS, RADIUS * 2 // 5)],
    "ring": [_ROUND, _ROUND * 5 // 9],
    "cross": [_cross(RADIUS // 3)],
}
"""Corners of the outlines; a second outline is a hole."""
