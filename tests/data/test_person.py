"""Drawings of people: the parts of person and camera in an image."""

from dataclasses import replace

import numpy as np
import pytest

from visionattn.data.drawing.person import Appearance, Camera, draw_person

PERSON = Appearance(
    skin=(200, 160, 120),
    hair=(30, 24, 22),
    shirt=(220, 0, 0),
    second=(250, 250, 250),
    pattern="plain",
    legs="trousers",
    legwear=(0, 0, 220),
    shoes=(20, 20, 20),
    bag="none",
    bag_colour=(0, 160, 0),
    build=1.0,
    stature=1.0,
    long_hair=False,
    long_sleeves=True,
    hat=None,
)
CAMERA = Camera((180, 180, 180), (120, 120, 120), 0.6, (1.0, 1.0, 1.0), 1.0, 1.0, 0.0, 0.0, 0.9, 0.0, ("front",))


def draw(person=PERSON, camera=CAMERA, seed=0, height=128, width=64):
    return draw_person(person, camera, np.random.default_rng(seed), height, width)


def share(image, colour, within=60):
    """Return the share of pixels with about this colour."""
    return (np.abs(image.astype(int) - colour).max(-1) < within).mean()


@pytest.mark.parametrize("size", [(64, 32), (128, 64), (40, 40)])
def test_image_has_the_size_and_depends_on_the_seed_alone(size):
    image = draw(height=size[0], width=size[1])
    assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
    np.testing.assert_array_equal(image, draw(height=size[0], width=size[1]))
    assert (image != draw(seed=1, height=size[0], width=size[1])).any()


@pytest.mark.parametrize("view", ["front", "back", "left", "right"])
def test_clothes_are_drawn_where_they_belong(view):
    images = [draw(camera=replace(CAMERA, views=(view,)), seed=seed) for seed in range(12)]
    mean_row = {}
    for part in ("shirt", "legwear"):
        rows = [np.nonzero(np.abs(p.astype(int) - getattr(PERSON, part)).max(-1) < 40)[0].mean() for p in images]
        mean_row[part] = np.median(rows)
    assert 0.15 < mean_row["shirt"] / 128 < 0.55 < mean_row["legwear"] / 128 < 0.95


@pytest.mark.parametrize(
    ("change", "colour", "views"),
    [
        ({"hat": (0, 220, 0)}, (0, 220, 0), ("front", "back", "left", "right")),
        ({"bag": "backpack", "bag_colour": (0, 220, 0)}, (0, 220, 0), ("front", "back", "left", "right")),
        ({"bag": "handbag", "bag_colour": (0, 220, 0)}, (0, 220, 0), ("front", "back", "left", "right")),
        ({"bag": "sash", "bag_colour": (0, 220, 0)}, (0, 220, 0), ("front", "back", "left", "right")),
        ({"pattern": "bands", "second": (0, 220, 0)}, (0, 220, 0), ("front", "back", "left", "right")),
        ({"pattern": "stripes", "second": (0, 220, 0)}, (0, 220, 0), ("front", "back", "left", "right")),
        ({"pattern": "halves", "second": (0, 220, 0)}, (0, 220, 0), ("front", "back", "left", "right")),
        ({"pattern": "logo", "second": (0, 220, 0)}, (0, 220, 0), ("front", "left", "right")),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else None,
)
def test_every_piece_of_appearance_is_visible(change, colour, views):
    def seen(person, view):
        camera = replace(CAMERA, views=(view,))
        return sum(share(draw(person, camera, seed), colour) for seed in range(6)) / 6

    for view in ("front", "back", "left", "right"):
        more = seen(replace(PERSON, **change), view) - seen(PERSON, view)
        assert (more > 0.001) == (view in views), view


def test_skirts_and_shorts_show_the_legs():
    bare = {
        legs: np.mean([share(draw(replace(PERSON, legs=legs), seed=n), PERSON.skin, 30) for n in range(6)])
        for legs in ("trousers", "shorts", "skirt")
    }
    assert bare["trousers"] < min(bare["shorts"], bare["skirt"])


def test_taller_and_broader_people_cover_more_pixels():
    def size(**change):
        person = replace(PERSON, **change)
        return sum(
            share(draw(person, seed=n), person.shirt) + share(draw(person, seed=n), person.legwear) for n in range(6)
        )

    assert size(stature=0.8) < size() < size(build=1.3)


def test_camera_changes_all_colours():
    plain = np.mean([draw(seed=n).mean((0, 1)) for n in range(4)], axis=0)

    def means(**change):
        return np.mean([draw(camera=replace(CAMERA, **change), seed=n).mean((0, 1)) for n in range(4)], axis=0)

    warm = means(gains=(1.1, 1.0, 0.6)) / plain
    assert warm[0] > warm[1] > warm[2]
    assert (means(gamma=1.5) < plain).all()
    assert (np.abs(means(contrast=0.3) - 127.5) < np.abs(plain - 127.5)).all()


def test_blur_smooths_and_noise_roughens():
    def roughness(**change):
        image = draw(camera=replace(CAMERA, **change)).astype(float)
        return np.abs(np.diff(image, axis=0)).mean()

    assert roughness(blur=2.0) < roughness() < roughness(noise=20.0)
