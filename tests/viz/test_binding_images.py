"""Figures of object binding: depth curves and similarity sheets."""

import numpy as np
import pytest
from PIL import Image

from visionattn.viz.binding import PANELS, Click, DepthCurve, save_depth_curves, save_similarity_sheet


def curve(model, probe, values, deviations=(None, None, None)):
    return DepthCurve(model, probe, (0.3, 0.6, 1.0), dict.fromkeys(PANELS, values), dict.fromkeys(PANELS, deviations))


def test_depth_curves_have_a_colour_per_probe_and_a_line_per_model(tmp_path):
    curves = [
        curve("trained", "quadratic", (0.6, 0.8, 0.7), (0.01, 0.02, 0.01)),
        curve("trained", "linear", (0.6, None, 0.6)),
        curve("random", "quadratic", (0.5, 0.5, None)),
    ]
    path = save_depth_curves(curves, 0.7, tmp_path / "new" / "depth.svg")
    text = path.read_text()
    for word in ("trained", "random", "quadratic", "linear", "Same object: accuracy", "Same object: area under ROC"):
        assert f"<!-- {word} -->" in text
    assert save_depth_curves(curves[:1], 0.7, tmp_path / "one.svg").read_text().count("<!-- trained -->") == 0


def test_empty_curves_and_missing_maps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no results to draw"):
        save_depth_curves([], 0.5, tmp_path / "depth.png")
    click = Click(np.zeros((8, 8, 3), np.uint8), (0, 0), np.zeros((8, 8), bool), [np.zeros((2, 2))])
    with pytest.raises(ValueError, match="1 clicks do not fit 2 captions"):
        save_similarity_sheet([click], ["a", "b"], tmp_path / "sheet.png")


def test_similarity_maps_are_bright_on_the_same_object(tmp_path):
    image = np.full((64, 64, 3), 200, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[:, 32:] = True
    click = Click(image, (1, 1), mask, [np.array([[0.0, 1.0], [0.0, 1.0]])])
    path = save_similarity_sheet([click, click], ["layer 3"], tmp_path / "sheet.png", height=64)
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet).astype(int)
    assert pixels.shape == (6 + 26 + 2 * 70, 6 + 3 * 70, 3)
    photo, true, predicted = (pixels[32:96, 6 + 70 * number :][:, :64] for number in range(3))
    assert (photo[:8, :8] == 200).all()
    assert np.abs(true - predicted).max() <= 1
    assert predicted[:10, 40:].mean() > predicted[:10, :24].mean() + 20
    # The click is in the middle of the lower right patch.
    assert (photo[48, 48] == 0).all()


def test_captions_of_any_bytes_are_drawn(tmp_path):
    """OpenCV would end the process on bytes that are not text."""
    click = Click(np.zeros((8, 8, 3), np.uint8), (0, 0), np.zeros((8, 8), bool), [np.zeros((2, 2))])
    assert save_similarity_sheet([click], ["caf\udce9"], tmp_path / "sheet.png").is_file()
