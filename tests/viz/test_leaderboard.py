"""Leaderboard figures: accuracy against parameters."""

import pytest

from visionattn.viz import leaderboard
from visionattn.viz.leaderboard import Point, save_leaderboard

POINTS = [
    Point("cifar10", "small", "knn", 0, 0.4),
    Point("cifar10", "small", "ep_32", 40_000, 0.6, 0.01),
    Point("cifar10", "small", "linear", 2_000, 0.5, 0.02),
    Point("cifar10", "large", "linear", 4_000, 0.7),
    Point("digits", "large", "knn", 0, 0.9),
]


def test_leaderboard_has_a_panel_per_data_set_and_a_colour_per_backbone(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(leaderboard, "save_figure", lambda figure, path: figures.append(figure) or path)
    save_leaderboard(POINTS, tmp_path / "board.png")
    first, second = figures[0].axes
    assert [axes.get_title() for axes in figures[0].axes] == ["cifar10", "digits"]
    assert (first.get_xscale(), second.get_xscale()) == ("log", "linear")
    small, large = (container.lines[0] for container in first.containers)
    assert small.get_xydata().tolist() == [[2_000, 50], [40_000, 60]]
    assert large.get_xydata().tolist() == [[4_000, 70]]
    assert small.get_color() != large.get_color()
    # A head without trained parameters is a line, in the colour of its backbone.
    assert [(line.get_ydata()[0], line.get_color()) for line in second.lines] == [(90, large.get_color())]
    assert {text.get_text() for text in first.texts} == {"knn", "linear", "ep_32"}
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["small", "large"]


def test_leaderboard_is_written_or_the_error_is_named(tmp_path):
    assert save_leaderboard(POINTS, tmp_path / "new" / "board.svg").exists()
    with pytest.raises(ValueError, match="no results"):
        save_leaderboard([], tmp_path / "board.png")
    with pytest.raises(ValueError, match="suffix"):
        save_leaderboard(POINTS, tmp_path / "board.xls")


def test_single_head_is_drawn_whatever_its_parameters(tmp_path):
    for count in (100, 1_010):
        assert save_leaderboard([POINTS[0], POINTS[2]._replace(num_parameters=count)], tmp_path / "one.png").exists()
