"""Segments in colours over images, and sheets of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.viz import slots as module
from visionattn.viz.slots import STRENGTH, colour_segments, palette, save_slots


def test_segments_are_coloured_and_negative_ids_stay_unchanged() -> None:
    pixels = np.full((2, 3, 4, 3), 100, np.uint8)
    ids = np.zeros((2, 3, 4), np.int64)
    ids[0, 0, 0], ids[1, 2, 3] = -1, 2
    found = colour_segments(pixels, ids)
    colours = palette(3)
    assert found[0, 0, 0].tolist() == [100, 100, 100]
    np.testing.assert_allclose(found[0, 1, 1], (1 - STRENGTH) * 100 + STRENGTH * colours[0], atol=0.51)
    np.testing.assert_allclose(found[1, 2, 3], (1 - STRENGTH) * 100 + STRENGTH * colours[2], atol=0.51)


def test_palette_repeats_only_beyond_its_colours() -> None:
    assert len(np.unique(palette(21), axis=0)) == 21
    assert palette(50).shape == (50, 3)
    assert palette(21).min() >= 0
    assert palette(21).max() <= 255


def test_sheet_has_a_row_for_each_kind(tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(module, "save_rows", lambda rows, path: seen.append(rows) or path)
    image = torch.randn(2, 3, 8, 8)
    segments = torch.zeros(2, 8, 8, dtype=torch.long)
    segments[:, 4:] = 3
    mean, std = [0.5] * 3, [0.2] * 3
    save_slots(image, segments, segments, torch.randn(2, 3, 4, 4), "x.png", mean, std)
    save_slots(image, segments, segments, None, "x.png", mean, std)
    assert list(seen[0]) == ["image", "segments", "slots", "rebuilt"]
    assert {rows.shape for rows in seen[0].values()} == {(2, 8, 8, 3)}
    assert list(seen[1]) == ["image", "segments", "slots"]
    assert (seen[1]["segments"][:, :4] == seen[1]["image"][:, :4]).all()  # unlabelled
    assert (seen[1]["slots"][:, :4] != seen[1]["image"][:, :4]).any()


def test_sheet_is_written(tmp_path) -> None:
    ids = torch.zeros(1, 8, 8, dtype=torch.long)
    path = save_slots(torch.randn(1, 3, 8, 8), ids, ids, None, tmp_path / "new" / "x.png", [0.5] * 3, [0.2] * 3)
    with Image.open(path) as image:
        assert image.size[0] > 100


def test_segments_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"segments are \[4, 4\] as the images, got \[2, 2\]"):
        colour_segments(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2), np.int64))
