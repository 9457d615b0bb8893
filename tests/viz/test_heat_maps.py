"""Heat over grey images, patches as colours, and strips in columns."""

import numpy as np
import pytest

from visionattn.viz.components import draw_components, paint_patches
from visionattn.viz.heat import OPACITY, draw_heat
from visionattn.viz.heat_maps import draw_heat_maps
from visionattn.viz.sheet import CAPTION, GAP
from visionattn.viz.strips import BETWEEN, draw_strips

RED = np.broadcast_to(np.array([200, 0, 0], np.uint8), (48, 48, 3))


def test_heat_alone_has_colour():
    cold = draw_heat(RED, np.zeros((4, 4)))
    assert np.ptp(cold.astype(int), axis=-1).max() <= 2  # grey and the nearly black of 0
    assert abs(cold.mean() - (1 - OPACITY) * 0.299 * 200) < 3


def test_heat_is_scaled_between_low_and_high():
    scores = np.array([[1.0, 3.0]])
    np.testing.assert_array_equal(draw_heat(RED, scores, 1, 3), draw_heat(RED, scores))
    np.testing.assert_array_equal(draw_heat(RED, scores, 0, 4), draw_heat(RED, np.array([[0.25, 0.75]]), 0, 1))


def test_fine_map_is_averaged_not_sampled():
    fine = np.zeros((480, 480))
    fine[::10, ::10] = 1
    drawn = draw_heat(RED, fine, 0, 1)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(
    "scores", [np.zeros(4), np.zeros((0, 2)), np.full((2, 2), np.nan)], ids=["row", "empty", "NaN"]
)
def test_heat_that_is_no_map_is_refused(scores):
    with pytest.raises(ValueError, match=r"a heat map is finite numbers \[rows, columns\]"):
        draw_heat(RED, scores)


def test_heat_map_of_each_image_has_its_place():
    maps = np.zeros((2, 1, 4, 4))
    maps[0, 0, 0, 0], maps[1, 0, 3, 3] = 1, 5
    sheet = draw_heat_maps([RED, RED], maps, ["map"], labels=["one", "two"], height=64).astype(int)
    top = GAP + 2 * CAPTION + GAP
    for number, place in enumerate([(8, 8), (56, 56)]):
        row = top + number * (64 + GAP + CAPTION)
        np.testing.assert_array_equal(sheet[row : row + 64, GAP : GAP + 64].reshape(-1, 3), [[200, 0, 0]] * 4096)
        drawn = sheet[row : row + 64, 2 * GAP + 64 : 2 * GAP + 128].sum(-1)
        assert drawn[place] > 2 * np.median(drawn)


def test_patches_are_their_colours_within_the_foreground():
    colours, foreground = np.zeros((8, 8, 3)), np.zeros((8, 8), bool)
    colours[:, :4, 0], colours[:, 4:, 2], foreground[2:6] = 1, 1, True
    drawn = paint_patches(colours, (64, 80), foreground)
    assert drawn.shape == (64, 80, 3)
    assert drawn[32, 10].tolist() == [255, 0, 0]
    assert drawn[32, 70].tolist() == [0, 0, 255]
    assert not drawn[:12].any()
    assert not drawn[-12:].any()
    assert (paint_patches(colours, (64, 80))[4, 10] == [255, 0, 0]).all()


def test_components_are_three_tiles_for_each_image():
    colours = np.random.default_rng(0).random((2, 4, 4, 3))
    sheet = draw_components([RED, RED], colours, colours, np.ones((2, 4, 4), bool), height=48)
    assert sheet.shape[1] == GAP + 3 * (48 + GAP)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 1), (6, 2), (16, 3), (60, 5)])
def test_strips_fill_a_page_column_by_column(count, columns):
    strips = [[np.full((40, 40, 3), 2 * number, np.uint8)] * 2 for number in range(count)]
    sheet = draw_strips(strips, ["a", "b"])
    width = 2 * (40 + GAP) + BETWEEN
    assert sheet.shape[1] == GAP + columns * width - BETWEEN
    rows = -(-count // columns)
    for number in range(count):
        column, row = divmod(number, rows)
        place = GAP + CAPTION + GAP + row * (40 + GAP) + 20, GAP + column * width + 20
        assert sheet[place].tolist() == [2 * number] * 3


def test_strips_that_do_not_fit_their_captions_are_refused():
    tile = np.zeros((8, 8, 3), np.uint8)
    for strips, captions, labels in (([], ["a"], []), ([[tile]], ["a", "b"], []), ([[tile]], ["a"], ["x", "y"])):
        with pytest.raises(ValueError, match="do not fit"):
            draw_strips(strips, captions, labels)
