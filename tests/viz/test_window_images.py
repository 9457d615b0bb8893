"""Windows: their keys agree with masks written by hand, and each panel shows them."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from visionattn.viz import WINDOWS, save_windows, visible_keys
from visionattn.viz import windows as module
from visionattn_kernels import Window


def mask(size: tuple[int, int], rows: range, columns: range) -> np.ndarray:
    keys = np.zeros(size, bool)
    keys[np.ix_(rows, columns)] = True
    return keys


@pytest.mark.parametrize(
    ("window", "query", "rows", "columns"),
    [
        (Window.neighborhood(3), (0, 5), range(3), range(4, 7)),  # moves inward at the border
        (Window.neighborhood(3, dilation=2), (4, 5), range(2, 7, 2), range(3, 8, 2)),
        (Window.neighborhood(3, is_causal=True), (4, 1), range(2, 5), range(2)),
        (Window.halo(block_size=4, halo_size=1), (5, 9), range(3, 8), range(7, 10)),  # cut off at the border
        (Window.halo(block_size=4, halo_size=1, boundary="zero"), (5, 9), range(3, 8), range(7, 10)),
        (Window.halo(block_size=4, halo_size=1, query_stride=2), (2, 1), range(3, 8), range(5)),
        (Window.blocks(4), (1, 6), range(4), range(4, 8)),
    ],
)
def test_keys_are_those_of_the_definition(window, query, rows, columns) -> None:
    np.testing.assert_array_equal(visible_keys(window, query, (8, 10)), mask((8, 10), rows, columns))


def test_keys_of_two_queries_have_the_mean_colour() -> None:
    red, green = np.array([230, 159, 0]) / 255, np.array([86, 180, 233]) / 255
    pixels = module.colour_keys(Window.blocks(2), (2, 4), [(0, 0), (1, 1)])
    np.testing.assert_allclose(pixels[0, 0], red)
    np.testing.assert_allclose(pixels[1, 1], green)
    np.testing.assert_allclose(pixels[0, 1], 0.45 * (red + green) / 2 + 0.55)
    np.testing.assert_allclose(pixels[:, 2:], 0.95)


def test_query_with_a_stride_is_drawn_at_its_key() -> None:
    pixels = module.colour_keys(Window.halo(4, 1, query_stride=2), (8, 8), [(1, 2)])
    np.testing.assert_allclose(pixels[2, 4], np.array([230, 159, 0]) / 255)


def test_figure_has_a_panel_for_each_kind(tmp_path, monkeypatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(module, "save_figure", lambda figure, path: drawn.append(figure) or path)
    save_windows(WINDOWS, tmp_path / "windows.png")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == list(WINDOWS)
    assert {axes.images[0].get_array().shape for axes in figure.axes} == {(16, 16, 3)}


def test_figure_is_written(tmp_path) -> None:
    assert save_windows({"": Window.blocks(2)}, tmp_path / "new" / "x.png", (4, 6), [(0, 5)]).stat().st_size > 500


@pytest.mark.parametrize(
    ("windows", "queries", "message"),
    [
        ({}, [(0, 0)], "at least one window"),
        ({"a": Window.blocks(2)}, [], "1 to 7 queries, got 1 and 0"),
        ({"a": Window.blocks(2)}, [(0, 0)] * 8, "1 to 7 queries, got 1 and 8"),
        ({"a": Window.blocks(2)}, [(0, 16)], r"within 16 rows and 16 columns, got \(0, 16\)"),
    ],
)
def test_impossible_figures_are_refused(windows, queries, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        save_windows(windows, tmp_path / "x.png", queries=queries)
