"""Sheets of heads: what is bright, what is dim, and what is outlined."""

import numpy as np
import pytest

from visionattn.viz.head_maps import OUTLINE, HeadRow, draw_head_maps
from visionattn.viz.sheet import CAPTION, GAP

HEIGHT = 80
TOP = GAP + CAPTION + GAP
IMAGE = np.full((32, 32, 3), 200, np.uint8)


def tile(sheet, row, column):
    """Return the tile of a sheet of one line of captions."""
    top, left = TOP + row * (HEIGHT + GAP), GAP + column * (HEIGHT + GAP)
    return sheet[top : top + HEIGHT, left : left + HEIGHT].astype(int)


def row(**changes):
    maps = np.zeros((2, 4, 4))
    maps[0, 1, 1], maps[1, 2, 2] = 0.5, 0.01
    return HeadRow(IMAGE, maps, ["block 0", "head 0", "head 1"])._replace(**changes)


def test_each_map_is_bright_at_its_own_largest_value():
    sheet = draw_head_maps([row(window=np.ones((4, 4), bool))], height=HEIGHT)
    assert (tile(sheet, 0, 0) == 200).all()
    for column, cell in ((1, 1), (2, 2)):
        sums = tile(sheet, 0, column).sum(-1)
        brightest = sums[20 * cell : 20 * cell + 20, 20 * cell : 20 * cell + 20]
        assert brightest.min() > 1.5 * np.delete(sums, np.s_[20 * cell : 20 * cell + 20], 0).max()


def test_window_is_outlined_and_all_around_is_dim():
    window = np.zeros((4, 4), bool)
    window[1:3, 1:3] = True
    drawn = tile(draw_head_maps([row(window=window, point=(1, 1))], height=HEIGHT), 0, 1)
    assert (drawn[:20] == drawn[0, 0]).all()
    assert drawn[0, 0, 0] < 0.6 * 200
    assert (drawn[59, 20:60] == OUTLINE).all()
    assert (drawn[41:59, 59] == OUTLINE).all()
    assert (drawn[20, 20:40] == 255).all(), "the marked cell"


def test_quantile_cuts_off_what_is_larger():
    maps = np.linspace(1, 2, 100).reshape(1, 10, 10)
    maps[0, 0, 0] = 1000
    plain, cut = (
        draw_head_maps([HeadRow(IMAGE, maps, ["", ""])], height=HEIGHT, quantile=quantile) for quantile in (None, 0.95)
    )
    corner = np.s_[TOP + 70 : TOP + 80, 2 * GAP + HEIGHT + 70 : 2 * GAP + 2 * HEIGHT]
    assert cut[corner].sum() > 1.5 * plain[corner].sum()


def test_captions_are_not_repeated_and_rows_may_differ():
    one = draw_head_maps([row()], height=HEIGHT)
    assert len(draw_head_maps([row(), row()], height=HEIGHT)) == len(one) + HEIGHT + GAP
    wide = row(maps=np.ones((4, 2, 2)), captions=["", "0", "1", "2", "3"])
    both = draw_head_maps([row(), wide], height=HEIGHT)
    assert len(both) == len(one) + CAPTION + GAP + HEIGHT + GAP
    assert both.shape[1] == GAP + 5 * (HEIGHT + GAP)


def test_rows_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="there are no rows"):
        draw_head_maps([])
    with pytest.raises(ValueError, match="an image and 2 maps do not fit 1 captions"):
        draw_head_maps([row(captions=["image"])])
