"""Drawings of synthetic people; a person's appearance and the camera's view are independent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Colour = tuple[int, int, int]
Point = tuple[float, float]
Canvas = np.ndarray[Any, np.dtype[np.uint8]]
View = Literal["front", "back", "left", "right"]
Pattern = Literal["plain", "bands", "stripes", "halves", "logo"]
Legs = Literal["trousers", "shorts", "skirt"]
Bag = Literal["none", "backpack", "handbag", "sash"]

FINE = 4
"""Factor by which drawings are larger before they are averaged down."""


@dataclass(frozen=True)
class Appearance:
    """Appearance of a person; colours are red, green and blue.

    Attributes:
        build: width relative to an average person.
        stature: height relative to an average person.
        long_hair: whether the hair reaches the shoulders.
        hat: colour of the hat, None for no hat.
    """

    skin: Colour
    hair: Colour
    shirt: Colour
    second: Colour
    pattern: Pattern
    legs: Legs
    legwear: Colour
    shoes: Colour
    bag: Bag
    bag_colour: Colour
    build: float
    stature: float
    long_hair: bool
    long_sleeves: bool
    hat: Colour | None


@dataclass(frozen=True)
class Camera:
    """Scene and optics of a camera.

    Attributes:
        wall: colour of the wall behind the person.
        floor: colour of the floor.
        horizon: border of wall and floor, as a share of the height.
        gains: gains of red, green and blue.
        gamma: exponent of the brightness; above 1 darkens.
        contrast: factor of the contrast.
        blur: standard deviation of the blur in pixels of the finished image.
        noise: standard deviation of the noise in grey levels.
        scale: height of an average person as a share of the image's height.
        tilt: strength of a perspective from above, which shortens the legs.
        views: sides of a person that the camera can see.
    """

    wall: Colour
    floor: Colour
    horizon: float
    gains: tuple[float, float, float]
    gamma: float
    contrast: float
    blur: float
    noise: float
    scale: float
    tilt: float
    views: tuple[View, ...]


def draw_person(person: Appearance, camera: Camera, rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Draw an image [height, width, 3]; ``rng`` determines pose, place, clutter and noise."""
    import cv2

    canvas = _background(camera, rng, height * FINE, width * FINE)
    view = camera.views[rng.integers(len(camera.views))]
    _Figure(canvas, person, camera, view, rng).draw()
    _clutter(canvas, rng)
    if camera.blur:
        cv2.GaussianBlur(canvas, (0, 0), camera.blur * FINE, dst=canvas)
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float64) / 255
    light = small**camera.gamma * np.asarray(camera.gains) * rng.uniform(0.85, 1.15)
    graded = 255 * (0.5 + camera.contrast * (light - 0.5)) + rng.normal(0, camera.noise, small.shape)
    return graded.round().clip(0, 255).astype(np.uint8)


def _background(camera: Camera, rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Draw a wall with joints and a floor with boards, with small random shifts."""
    import cv2

    canvas = np.empty((height, width, 3), np.uint8)
    horizon = round(height * (camera.horizon + rng.uniform(-0.05, 0.05)))
    canvas[:horizon], canvas[horizon:] = camera.wall, camera.floor
    offset = int(rng.integers(width))
    for x in range(offset - width, 2 * width, width // 2):
        cv2.line(canvas, (x, 0), (x, horizon), _shade(camera.wall, 0.8), FINE)
        cv2.line(canvas, (x, horizon), (x + (x - width // 2), height), _shade(camera.floor, 0.85), FINE)
    for _ in range(rng.integers(4)):
        x, y = int(rng.integers(width)), int(rng.integers(horizon))
        w, h = (int(value) for value in rng.integers(width // 8, width // 2, 2))
        cv2.rectangle(canvas, (x, y), (x + w, y + h), _any_colour(rng), -1)
    return canvas


def _clutter(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw an object in front of the person, with probability 0.2."""
    import cv2

    if rng.random() < 0.2:
        height, width = canvas.shape[:2]
        top, left = int(height * rng.uniform(0.6, 0.9)), int(width * rng.uniform(-0.4, 0.9))
        cv2.rectangle(canvas, (left, top), (left + width // 2, height), _any_colour(rng), -1)


class _Figure:
    """Person on a canvas, in units of the person's height: y from the sole up, x from the middle to the right."""

    def __init__(
        self, canvas: Canvas, person: Appearance, camera: Camera, view: View, rng: np.random.Generator
    ) -> None:
        self.canvas, self.person, self.view, self.rng = canvas, person, view, rng
        height, width = canvas.shape[:2]
        self.unit = height * camera.scale * person.stature * rng.uniform(0.92, 1.05)
        self.place = (width * (0.5 + rng.uniform(-0.1, 0.1)), height * (0.97 + rng.uniform(-0.03, 0.02)))
        self.lean = rng.uniform(-0.06, 0.06)
        self.tilt = camera.tilt
        self.side = {"left": -1, "right": 1}.get(view, 0)
        self.breadth = person.build * (0.65 if self.side else 1.0)

    def draw(self) -> None:
        """Draw all parts from back to front."""
        person, stride = self.person, self.rng.uniform(0.02, 0.09) * (1.5 if self.side else 1)
        swing = self.rng.uniform(-0.06, 0.06)
        if person.bag == "backpack" and self.view != "back":
            self._backpack()
        if person.long_hair and self.view == "front":
            self._oval((0, 0.86), 0.085, 0.1, person.hair)
        self._arm(-1, -swing)
        self._legs(stride)
        self._trunk()
        self._arm(1, swing)
        self._head()
        if person.bag == "backpack" and self.view == "back":
            self._backpack()
        elif person.bag == "sash":
            self._limb([(-0.11, 0.8), (0.11, 0.52)], 0.03, person.bag_colour)
        elif person.bag == "handbag":
            hand = 0.19 if self.view != "back" else -0.19
            self._polygon(_box(hand, 0.36, 0.055, 0.06), person.bag_colour)

    def _legs(self, stride: float) -> None:
        person = self.person
        for side in (-1, 1):
            foot = side * (0.045 + stride)
            bare = person.legs != "trousers"
            colour = _shade(person.skin if bare else person.legwear, 0.88 if side < 0 else 1)
            self._limb([(side * 0.045, 0.46), (foot, 0.03)], 0.065 if bare else 0.085, colour)
            if person.legs == "shorts":
                knee = side * 0.045 + 0.5 * (foot - side * 0.045)
                self._limb([(side * 0.045, 0.48), (knee, 0.27)], 0.1, person.legwear)
            toe = 0.03 * (self.side or side)
            self._limb([(foot, 0.02), (foot + toe, 0.015)], 0.055, person.shoes)
        if person.legs == "skirt":
            self._polygon([(-0.09, 0.54), (0.09, 0.54), (0.15, 0.27), (-0.15, 0.27)], person.legwear)
        else:
            self._polygon([(-0.09, 0.55), (0.09, 0.55), (0.095, 0.44), (-0.095, 0.44)], person.legwear)

    def _trunk(self) -> None:
        person = self.person
        top, bottom, shoulder, waist = 0.82, 0.5, 0.13, 0.1

        def slice_of(low: float, high: float, left: float = -1, right: float = 1) -> list[Point]:
            """Return the trunk between two heights (0 waist, 1 shoulders) and two sides (-1 left, 1 right)."""
            points = [(left, high), (right, high), (right, low), (left, low)]
            return [(x * (waist + y * (shoulder - waist)), bottom + y * (top - bottom)) for x, y in points]

        self._polygon(slice_of(0, 1), person.shirt)
        if person.pattern == "bands":
            for low in (0.1, 0.4, 0.7):
                self._polygon(slice_of(low, low + 0.15), person.second)
        elif person.pattern == "stripes":
            for left in (-0.8, -0.2, 0.4):
                self._polygon(slice_of(0, 1, left, left + 0.35), person.second)
        elif person.pattern == "halves":
            self._polygon(slice_of(0, 0.5), person.second)
        elif person.pattern == "logo" and self.view != "back":
            self._polygon(slice_of(0.4, 0.8, -0.45, 0.45), person.second)

    def _arm(self, side: int, swing: float) -> None:
        person = self.person
        shoulder, elbow, hand = (side * 0.125, 0.79), (side * 0.16 + swing / 2, 0.63), (side * 0.165 + swing, 0.48)
        self._limb([shoulder, elbow, hand], 0.045, person.skin)
        self._limb([shoulder, elbow, hand] if person.long_sleeves else [shoulder, elbow], 0.06, person.shirt)

    def _head(self) -> None:
        person = self.person
        self._limb([(0, 0.85), (0, 0.8)], 0.05, person.skin)
        self._oval((0, 0.91), 0.062, 0.078, person.hair if self.view == "back" else person.skin)
        if self.view == "back" and person.long_hair:
            self._oval((0, 0.86), 0.075, 0.1, person.hair)
        elif self.view != "back":
            self._oval((-0.02 * self.side, 0.96), 0.065, 0.04, person.hair)
            if self.side:
                self._oval((-0.04 * self.side, 0.92), 0.04, 0.06, person.hair)
        if person.hat:
            self._oval((0, 0.975), 0.075, 0.035, person.hat)

    def _backpack(self) -> None:
        """Draw a backpack: all of it from behind, half from the side, only the straps from the front."""
        colour = self.person.bag_colour
        if self.view == "front":
            for side in (-0.075, 0.075):
                self._limb([(side * 1.3, 0.83), (side * 1.7, 0.6)], 0.05, colour)
        else:
            self._polygon(_box(-0.14 * self.side, 0.68, 0.085, 0.12), colour)

    def _pixels(self, points: Sequence[Point]) -> Canvas:
        x, y = np.asarray(points, dtype=np.float64).T
        y = y - self.tilt * y * (1 - y)
        x = x * self.breadth * (1 + self.tilt * (y - 0.5)) + self.lean * y
        return np.stack([self.place[0] + x * self.unit, self.place[1] - y * self.unit], 1).round().astype(np.int32)

    def _polygon(self, points: Sequence[Point], colour: Colour) -> None:
        import cv2

        cv2.fillPoly(self.canvas, [self._pixels(points)], colour)

    def _oval(self, centre: Point, across: float, along: float, colour: Colour) -> None:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        across /= self.breadth**0.7  # heads vary less in width than trunks, and look as broad from the side
        self._polygon(
            [(centre[0] + across * np.cos(angle), centre[1] + along * np.sin(angle)) for angle in angles], colour
        )

    def _limb(self, points: Sequence[Point], thickness: float, colour: Colour) -> None:
        import cv2

        cv2.polylines(self.canvas, [self._pixels(points)], False, colour, max(1, round(thickness * self.unit)))


def _box(x: float, y: float, half_width: float, half_height: float) -> list[Point]:
    return [(x + dx * half_width, y + dy * half_height) for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, int(channel * factor)) for channel in colour)
    return red, green, blue


def _any_colour(rng: np.random.Generator) -> Colour:
    red, green, blue = (int(channel) for channel in rng.integers(40, 220, 3))
    return red, green, blue
