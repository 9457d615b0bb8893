"""Rollouts of DCAL: three panels, and the bright patches in them."""

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.viz.heat import OPACITY
from visionattn.viz.rollout import BACKGROUND, DIMMED, FRAME, draw_rollout

WHITE = np.full((192, 96, 3), 255, np.uint8)
BLACK = np.zeros((192, 96, 3), np.uint8)
GRID = (4, 2)  # patches of 48×48 pixels


def panels(image=WHITE, scores=None, selected=(), grid=GRID):
    """Split a drawing into image, heat map and selection."""
    scores = np.arange(grid[0] * grid[1]) if scores is None else scores
    page = draw_rollout(image, scores, np.array(selected, dtype=np.int64), grid)
    width = (page.shape[1] - 2 * 8) // 3
    assert (page[:, width : width + 8] == BACKGROUND).all()
    assert (page[:, 2 * width + 8 : 2 * width + 16] == BACKGROUND).all()
    return page[:, :width], page[:, width + 8 : 2 * width + 8], page[:, 2 * width + 16 :]


def patch(panel, number, grid=GRID):
    row, column = divmod(number, grid[1])
    height, width = panel.shape[0] // grid[0], panel.shape[1] // grid[1]
    return panel[row * height : (row + 1) * height, column * width : (column + 1) * width]


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((192, 96), (192, 96)), ((448, 448), (448, 448)), ((64, 32), (192, 96)), ((100, 150), (192, 288))],
    ids=str,
)
def test_panels_are_three_of_at_least_192_pixels(size, drawn):
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.stack([255 * rows / size[0], 255 * columns / size[1], 0 * rows], -1).astype(np.uint8)
    found = panels(image)
    assert [panel.shape for panel in found] == [(*drawn, 3)] * 3
    assert found[0].dtype == np.uint8
    if size == drawn:
        np.testing.assert_array_equal(found[0], image)
    small = np.asarray(Image.fromarray(found[0]).resize(size[::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(small - image).max() < 4


def test_tensors_and_pillow_images_give_the_same_drawing():
    scores, selected = torch.rand(8), torch.tensor([3, 1])
    expected = draw_rollout(WHITE, scores.numpy(), selected.numpy(), GRID)
    for image in (torch.from_numpy(WHITE), Image.fromarray(WHITE)):
        np.testing.assert_array_equal(draw_rollout(image, scores, selected, GRID), expected)


def test_heat_map_is_row_by_row():
    for hottest in range(8):
        _, heat, _ = panels(BLACK, np.eye(8)[hottest])
        brightness = [patch(heat, number).mean() for number in range(8)]
        assert int(np.argmax(brightness)) == hottest
        assert patch(heat, hottest)[24, 24].astype(int).sum() > 0.9 * heat.astype(int).sum(-1).max()


def test_heat_map_covers_the_range_of_the_scores():
    scores = np.array([0.2, 0.9, 0.4, 0.5, 0.3, 0.7, 0.6, 0.8])
    _, expected, _ = panels(scores=scores)
    for factor, shift in ((1e-6, 0), (100, -3), (1, 1e3)):
        _, heat, _ = panels(scores=factor * scores + shift)
        assert np.abs(heat.astype(int) - expected).max() <= 1
    middles = [int(patch(expected, number)[24, 24].astype(int).sum()) for number in np.argsort(scores)]
    assert middles[0] == min(middles)
    assert middles[-1] == max(middles)


def test_heat_map_is_smooth():
    _, heat, _ = panels(BLACK, np.arange(8.0))
    assert np.abs(np.diff(heat.astype(int), axis=0)).max() < 16
    assert np.abs(np.diff(heat.astype(int), axis=1)).max() < 16


def test_heat_map_is_red_not_blue():
    _, heat, _ = panels(BLACK, np.arange(8) % 2)
    for step in (patch(heat, 0)[24, 47], patch(heat, 1)[24, 24]):  # halfway, and the hottest
        assert step[0] > 1.3 * step[2]


def test_image_shows_through_the_heat_map():
    _, white, _ = panels(WHITE)
    _, black, _ = panels(BLACK)
    assert np.abs(white.astype(float) - black - (1 - OPACITY) * 255).max() <= 1
    assert 0 < OPACITY < 1


@pytest.mark.parametrize("value", [0.0, 0.125, -3.0])
def test_equal_scores_have_one_colour(value):
    with np.errstate(all="raise"):
        _, heat, _ = panels(scores=np.full(8, value))
    assert len(np.unique(heat.reshape(-1, 3), axis=0)) == 1


def test_selected_patches_stay_bright_within_a_thin_frame():
    image = np.random.default_rng(0).integers(0, 256, WHITE.shape, dtype=np.uint8)
    _, _, panel = panels(image, selected=[1, 6])
    for number in range(8):
        drawn, original = patch(panel, number), patch(image, number)
        if number not in (1, 6):
            np.testing.assert_allclose(drawn, DIMMED * original, atol=0.51)
            continue
        np.testing.assert_array_equal(drawn[1:-1, 1:-1], original[1:-1, 1:-1])
        for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
            assert (edge == FRAME).all()


def test_neighbouring_patches_share_a_frame():
    _, _, panel = panels(selected=[2, 3, 4])
    framed = (panel == FRAME).all(-1)
    assert framed[48, :].all()
    assert framed[48:96, 95].all()
    assert not framed[49:95, 47:49].any()  # between 2 and 3
    assert not framed[95:97, 1:47].any()  # between 2 and 4
    assert framed[96:144, 47].all()  # right of 4
    assert framed[95, 48:].all()  # below 3


def test_all_or_no_patches_may_be_selected():
    _, _, panel = panels(selected=[])
    np.testing.assert_allclose(panel, DIMMED * WHITE, atol=0.51)
    _, _, panel = panels(selected=range(8))
    assert (panel[1:-1, 1:-1] == 255).all()


def test_patches_may_be_fractions_of_pixels():
    _, _, panel = panels(np.full((200, 101, 3), 255, np.uint8), selected=[0, 13 * 7 - 1], grid=(13, 7))
    bright = (panel != round(DIMMED * 255)).any(-1)
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (0, 199, 0, 100)
    assert abs(bright.sum() - 2 * 200 * 101 / (13 * 7)) < 2 * (200 / 13 + 101 / 7)


@pytest.mark.parametrize(
    ("scores", "selected", "message"),
    [
        (np.zeros(9), [0], r"a grid of 4×2 patches has as many scores, got \[9\]"),
        (np.zeros((4, 2)), [0], r"got \[4, 2\]"),
        (np.full(8, np.nan), [0], "must be finite"),
        (np.array([0, 1, np.inf, 0, 0, 0, 0, 0]), [0], "must be finite"),
        (np.zeros(8), [8], r"the selected of 8 patches are numbers from 0 to 7, got \[8\]"),
        (np.zeros(8), [-1, 2], r"from 0 to 7, got \[-1 +2\]"),
        (np.zeros(8), [[1, 2]], r"from 0 to 7, got \[\[1 2\]\]"),
    ],
)
def test_scores_that_do_not_fit_the_grid_are_named(scores, selected, message):
    with pytest.raises(ValueError, match=message):
        draw_rollout(WHITE, scores, selected, GRID)


def test_array_that_is_not_an_image_is_named():
    with pytest.raises(ValueError, match=r"an image is bytes \[H, W, 3\], got float64"):
        draw_rollout(WHITE / 255, np.zeros(8), [0], GRID)
    with pytest.raises(ValueError, match=r"a grid of 0×2 patches"):
        draw_rollout(WHITE, np.zeros(0), [], (0, 2))
