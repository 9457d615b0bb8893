"""Shapes: areas and places as geometry has them."""

import math

import numpy as np
import pytest

from visionattn.data.drawing.shapes import LEVELS, SHAPES, SUBPIXELS, draw_pattern, draw_shape

SIZE = (200, 240)
RADIUS = 60
AREAS = {  # of a circle around them of radius 1
    "circle": math.pi,
    "ellipse": math.pi / 2,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "star": 10 * 0.4 * math.sin(math.pi / 5) / 2,
    "ring": math.pi * (1 - (5 / 9) ** 2),
    "cross": 20 / 9,
}


def draw(shape, centre=(120, 100), radius=RADIUS, turn=0, size=SIZE):
    return draw_shape(shape, tuple(SUBPIXELS * x for x in centre), SUBPIXELS * radius, turn, size)


@pytest.mark.parametrize("turn", [0, 17, 90, 251])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_areas(shape, turn):
    mask = draw(shape, turn=turn)
    assert (mask.shape, mask.dtype) == (SIZE, np.bool_)
    assert mask.sum() == pytest.approx(AREAS[shape] * RADIUS**2, rel=0.05)  # outlines are a line wide


@pytest.mark.parametrize("turn", [0, 45, 133])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_at_their_places(shape, turn):
    y, x = np.nonzero(draw(shape, (90, 110), turn=turn))
    assert (x.mean(), y.mean()) == pytest.approx((90, 110), abs=0.8)
    reach = 4 / 3 if shape == "cross" else 1  # its ends are wide
    assert np.hypot(x - 90, y - 110).max() <= reach * RADIUS + 1


def test_ring_has_a_hole():
    ring, circle = draw("ring"), draw("circle")
    assert not ring[100, 120]
    assert circle[100, 120]
    assert (ring <= circle).all()


def test_turn_is_clockwise():
    y, x = np.nonzero(draw("triangle"))
    assert x[y.argmin()] == pytest.approx(120, abs=1)  # points upwards
    y, x = np.nonzero(draw("triangle", turn=90))
    assert y[x.argmax()] == pytest.approx(100, abs=1)  # points to the right


@pytest.mark.parametrize("shape", SHAPES)
def test_parts_outside_the_image_are_cut_off(shape):
    large = draw(shape, (10, 190), turn=30)
    moved = draw(shape, (110, 290), turn=30, size=(400, 440))
    # OpenCV draws lines from where they enter the image, which moves some of their pixels.
    assert (large ^ moved[100:300, 100:340]).sum() < 0.03 * large.sum()
    assert not draw(shape, (-80, -80)).any()


@pytest.mark.parametrize("pattern", ["stripes", "checks", "dots"])
@pytest.mark.parametrize("turn", [0, 90, 30])
def test_patterns_have_two_shades_and_a_period(pattern, turn):
    shades = draw_pattern(pattern, 8, turn, SIZE)
    assert (shades.shape, shades.dtype) == (SIZE, np.uint8)
    assert set(np.unique(shades)) == {0, LEVELS - 1}
    assert (shades > 0).mean() == pytest.approx(0.4 if pattern == "dots" else 0.5, abs=0.05)
    if turn == 0:
        np.testing.assert_array_equal(shades[:, 8:], shades[:, :-8])
        assert (shades[:, 4:] != shades[:, :-4]).any()


def test_plain_has_one_shade_and_the_gradient_all():
    assert not draw_pattern("plain", 8, 0, SIZE).any()
    for turn, axis, sign in ((0, 0, 1), (90, 1, 1), (180, 0, -1), (270, 1, -1)):
        shades = draw_pattern("gradient", 8, turn, SIZE).astype(int)
        assert shades.shape == SIZE
        assert set(np.unique(shades)) == set(range(LEVELS))
        assert (sign * np.diff(shades, axis=axis) >= 0).all()
        assert not np.diff(shades, axis=1 - axis).any()
