"""Ranked lists: the query, and frames of right and wrong images."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.viz.ranked_lists import (
    QUERY,
    RIGHT,
    UNJUDGED,
    WRONG,
    Neighbours,
    RankedList,
    draw_neighbours,
    draw_ranked_list,
    save_neighbours,
    save_ranked_lists,
)

BLUE = (0, 0, 250)


def one_colour(height=40, width=20, colour=BLUE):
    return np.full((height, width, 3), colour, np.uint8)


def where(page, colour):
    return (page == np.asarray(colour, np.uint8)).all(-1)


def runs(flags):
    """Return the first and last index of each run of flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), (edges[1::2] - 1).tolist(), strict=True))


def test_frames_are_grey_for_the_query_green_for_right_and_red_for_wrong():
    matches = [True, False, False, True]
    page = draw_ranked_list(one_colour(), [one_colour()] * 4, matches, height=40)
    # A row through the middle: frames of one colour on both sides of each image, in order.
    row = page[page.shape[0] // 3]
    colours = [tuple(int(value) for value in row[start]) for start, _ in runs(where(row, QUERY))]
    assert colours == [QUERY] * 2
    order = []
    for start, end in runs(where(row, BLUE)):
        before, after = (tuple(int(value) for value in row[place]) for place in (start - 1, end + 1))
        assert before == after
        order.append(before)
    assert order == [QUERY, RIGHT, WRONG, WRONG, RIGHT]


def test_frames_surround_the_images():
    page = draw_ranked_list(one_colour(), [one_colour(), one_colour()], [True, False], height=40)
    inside = where(page, BLUE)
    for (left, right), colour in zip(runs(inside.any(0)), (QUERY, RIGHT, WRONG), strict=True):
        ((top, bottom),) = runs(inside[:, left])
        assert (bottom - top + 1, right - left + 1) == (40, 20)
        framed = where(page, colour)
        for edge in (framed[top - 1, left : right + 1], framed[bottom + 1, left : right + 1]):
            assert edge.all()
        for edge in (framed[top : bottom + 1, left - 1], framed[top : bottom + 1, right + 1]):
            assert edge.all()


def test_images_of_any_format_and_size_have_one_height(tmp_path):
    Image.fromarray(one_colour(100, 100)).save(tmp_path / "square.png")
    gallery = [tmp_path / "square.png", str(tmp_path / "square.png"), Image.fromarray(one_colour(20, 60))]
    gallery.append(torch.from_numpy(one_colour(64, 32)))
    page = draw_ranked_list(one_colour(50, 25), gallery, [True] * 4, height=30)
    inside = where(page, BLUE)
    assert [right - left + 1 for left, right in runs(inside.any(0))] == [15, 30, 30, 90, 15]
    ((top, bottom),) = runs(inside.any(1))
    assert bottom - top == 29
    assert page.dtype == np.uint8


def test_query_is_set_apart():
    page = draw_ranked_list(one_colour(), [one_colour()] * 3, [True] * 3, height=40)
    places = runs(where(page, BLUE).any(0))
    gaps = [after[0] - before[1] for before, after in pairwise(places)]
    assert gaps[0] > gaps[1] == gaps[2]


def test_ranks_and_crosses_are_below_the_images():
    def captions(matches):
        page = draw_ranked_list(one_colour(), [one_colour()] * 2, matches, height=40)
        ((_, bottom),) = runs(where(page, BLUE).any(1))
        below = page[bottom + 6 :]
        left, right = runs(where(page, BLUE).any(0))[2]
        return below[:, left : right + 1]

    right, wrong = captions([True, True]), captions([True, False])
    assert (right < 128).any()
    assert (wrong < 128).sum() > (right < 128).sum()


def test_default_height_is_192_pixels():
    page = draw_ranked_list(one_colour(), [one_colour()], [True])
    ((top, bottom),) = runs(where(page, BLUE).any(1))
    assert bottom - top + 1 == 192


def test_lists_are_written_by_name(tmp_path):
    lists = [RankedList(name, one_colour(), [one_colour()], [True]) for name in ("0001-a", "0002-b.c")]
    paths = save_ranked_lists(tmp_path / "new", lists, height=40)
    assert paths == [tmp_path / "new" / "0001-a.png", tmp_path / "new" / "0002-b.c.png"]
    assert sorted((tmp_path / "new").iterdir()) == paths
    expected = draw_ranked_list(one_colour(), [one_colour()], [True], height=40)
    for path in paths:
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(
    ("gallery", "matches", "options", "message"),
    [
        ([], [], {}, "got 0 and 0"),
        ([one_colour()], [True, False], {}, "an image for each match: got 1 and 2"),
        ([one_colour()], [True], {"height": 0}, "height must be at least 1, got 0"),
        ([one_colour() / 255], [True], {}, r"an image is bytes \[H, W, 3\], got float64"),
    ],
)
def test_wrong_arguments_are_named(gallery, matches, options, message):
    with pytest.raises(ValueError, match=message):
        draw_ranked_list(one_colour(), gallery, matches, **options)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        draw_ranked_list(one_colour(), [tmp_path / "gone.jpg"], [True])


def test_neighbours_have_a_row_for_each_query_and_frames_without_judgement(tmp_path):
    rows = [
        Neighbours(one_colour(), [one_colour()] * 3, [0.9, 0.8, 0.7]),
        Neighbours(one_colour(), [one_colour()], [1]),
    ]
    page = np.asarray(Image.open(save_neighbours(tmp_path / "sheet.png", rows, height=40)))
    first = draw_neighbours(*rows[0], height=40)
    assert np.array_equal(page[: len(first)], first)
    for number, row in enumerate(rows):
        pixels = page[number * len(first) + len(first) // 3]
        assert len(runs(where(pixels, BLUE))) == 1 + len(row.gallery)
        assert len(runs(where(pixels, QUERY))) == 2
        assert len(runs(where(pixels, UNJUDGED))) == 2 * len(row.gallery)
    assert not where(page, RIGHT).any()
    assert not where(page, WRONG).any()
    with pytest.raises(ValueError, match="no queries"):
        save_neighbours(tmp_path / "sheet.png", [])
