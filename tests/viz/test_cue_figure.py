"""The figure of two cues in conflict."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionattn.viz.cues import save_cue_figure

WINS = {"digit": {0: [0.7], 2: [0.1]}, "photo": {0: [0.7], 2: [0.9]}, "random": {0: [0.7], 2: [0.6, 0.8, 0.65]}}


def figure(path: Path, digit: float = -1.0, wins: dict[str, dict[int, list[float]]] = WINS) -> np.ndarray:
    effects = {"digit": np.array([[0.0, digit], [np.nan, 0.2]]), "photo": np.array([[1.0, 0.0], [np.nan, 0.1]])}
    return np.asarray(Image.open(save_cue_figure(effects, wins, path)).convert("L"), int)


def test_effects_and_wins_are_drawn(tmp_path: Path) -> None:
    pixels = figure(tmp_path / "a.png")
    width = pixels.shape[1]
    other_effect, other_wins = (
        figure(tmp_path / "b.png", digit=1.0),
        figure(tmp_path / "c.png", wins={"digit": {0: [0.7], 2: [0.9]}}),
    )
    for other, left in ((other_effect, True), (other_wins, False)):
        assert other.shape == pixels.shape
        changed = np.flatnonzero((other != pixels).any(0))
        assert len(changed)
        assert changed.max() < width / 2 if left else changed.min() > width / 2


def test_effects_may_all_be_zero(tmp_path: Path) -> None:
    effects = dict.fromkeys(("digit", "photo"), np.zeros((2, 3)))
    assert save_cue_figure(effects, WINS, tmp_path / "figure.svg", title="name").stat().st_size > 1000


def test_suffix_is_that_of_a_figure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its suffix must be one of"):
        figure(tmp_path / "a.jpg")
