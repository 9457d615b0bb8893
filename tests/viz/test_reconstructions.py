"""Rows of images: places and colours."""

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.viz import reconstructions
from visionattn.viz.reconstructions import save_reconstructions


def test_page_has_a_row_per_name_and_a_column_per_image(tmp_path, monkeypatch):
    figures = []
    original = reconstructions.save_figure
    monkeypatch.setattr(reconstructions, "save_figure", lambda *args: figures.append(args[0]) or original(*args))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    colours = torch.rand(2, 4, 3)  # [row, column, channel]
    normalised = (colours - torch.tensor(mean)) / torch.tensor(std)
    rows = {
        name: x[..., None, None].expand(-1, -1, 5, 6) for name, x in zip(("seen", "guessed"), normalised, strict=True)
    }
    path = save_reconstructions(rows, tmp_path / "new" / "x.png", mean, std)
    with Image.open(path) as image:
        assert image.size[0] > 400
    (axes,) = figures[0].axes
    page = axes.images[0].get_array()
    assert page.shape == (2 * 6, 4 * 7, 3)
    for row in range(2):
        for column in range(4):
            tile = page[6 * row : 6 * row + 5, 7 * column : 7 * column + 6]
            np.testing.assert_allclose(tile, np.broadcast_to(255 * colours[row, column], tile.shape), atol=0.51)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["seen", "guessed"]
    assert (page[5] == 255).all()
    assert (page[:, 6] == 255).all()


def test_values_are_clipped_and_grey_images_are_drawn(tmp_path):
    rows = {"x": torch.linspace(-9, 9, 32).view(2, 1, 4, 4)}
    assert save_reconstructions(rows, tmp_path / "x.png", [0.5], [0.5]).exists()


@pytest.mark.parametrize(
    ("rows", "shapes"),
    [
        ({}, r"\[\]"),
        ({"a": np.zeros((0, 3, 4, 4))}, r"\[\[0, 4, 4, 3\]\]"),
        ({"a": np.zeros((3, 4, 4))}, r"\[\[4, 4, 3\]\]"),
        ({"a": np.zeros((2, 3, 4, 4)), "b": np.zeros((1, 3, 4, 4))}, r"\[\[1, 4, 4, 3\], \[2, 4, 4, 3\]\]"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, rows, shapes):
    with pytest.raises(ValueError, match=rf"of one shape, got {shapes}"):
        save_reconstructions(rows, tmp_path / "x.png", [0.5] * 3, [0.5] * 3)


def test_names_of_rows_are_not_cut_off(tmp_path) -> None:
    rows = {name: np.full((8, 48, 48, 3), 120, np.uint8) for name in ("image", "segments", "slots", "rebuilt")}
    with Image.open(reconstructions.save_rows(rows, tmp_path / "x.png")) as page:
        assert (np.asarray(page.convert("L"))[:, :4] == 255).all()
