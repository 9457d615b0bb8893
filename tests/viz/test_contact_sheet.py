"""Contact sheets: places and scales of kernels."""

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.viz import contact_sheet
from visionattn.viz.contact_sheet import save_contact_sheet


@pytest.fixture
def drawn(monkeypatch):
    """Collect the figures instead of saving them."""
    figures = []

    def save(figure, path):
        figures.append(figure)
        return original(figure, path)

    original = contact_sheet.save_figure
    monkeypatch.setattr(contact_sheet, "save_figure", save)
    return figures


def by_title(figure):
    return {axes.get_title().partition("\n")[0]: axes for axes in figure.axes if axes.get_title()}


def test_sheet_has_a_row_per_block_and_a_column_per_kind(tmp_path, drawn):
    kernels = {
        "blocks.0.global": torch.randn(5, 7, 7),
        "blocks.0.channel": torch.randn(5, 1, 1),
        "blocks.1.global": torch.randn(10, 7, 7),
        "blocks.1.local3": torch.randn(10, 3, 3),
    }
    path = save_contact_sheet(kernels, tmp_path / "new" / "kernels.png")
    with Image.open(path) as image:
        assert image.size == (round(3 * 2.6 * 150), round(2 * 2.6 * 150))
    places = {name: axes.get_subplotspec() for name, axes in by_title(drawn[0]).items()}
    assert {name: (spec.rowspan.start, spec.colspan.start) for name, spec in places.items()} == {
        "blocks.0.global": (0, 0),
        "blocks.0.channel": (0, 1),
        "blocks.1.global": (1, 0),
        "blocks.1.local3": (1, 2),
    }


def test_channels_are_tiles_on_a_scale_around_zero(tmp_path, drawn):
    kernel = np.arange(3 * 2 * 4).reshape(3, 2, 4) - 20.0
    save_contact_sheet({"global": kernel}, tmp_path / "kernels.png")
    (axes,) = drawn[0].axes
    image = axes.images[0]
    page = image.get_array().filled(np.nan)
    assert page.shape == (2 + 1 + 2, 4 + 1 + 4)
    np.testing.assert_array_equal(page[:2, :4], kernel[0])
    np.testing.assert_array_equal(page[:2, 5:], kernel[1])
    np.testing.assert_array_equal(page[3:, :4], kernel[2])
    assert np.isnan(page[2]).all()
    assert np.isnan(page[3:, 5:]).all()
    assert image.get_clim() == (-20, 20)
    assert axes.get_title() == "global\n3×2×4, ±20"


def test_channels_beyond_the_maximum_are_sampled(tmp_path, drawn):
    kernel = torch.arange(101.0).view(101, 1, 1).expand(101, 3, 3)
    save_contact_sheet({"global": kernel}, tmp_path / "kernels.png", channels=5)
    page = drawn[0].axes[0].images[0].get_array()
    assert sorted(set(page.compressed())) == [0, 25, 50, 75, 100]
    assert "5 of 101×3×3" in drawn[0].axes[0].get_title()


def test_kernels_of_one_row_and_of_single_values_have_their_own_forms(tmp_path, drawn):
    kernels = {"a": torch.randn(6, 1, 50), "b": torch.randn(1, 1, 50), "c": torch.randn(6, 1, 1)}
    save_contact_sheet(kernels, tmp_path / "kernels.svg")
    axes = by_title(drawn[0])
    np.testing.assert_allclose(axes["a"].images[0].get_array(), kernels["a"][:, 0])
    np.testing.assert_allclose(axes["b"].lines[0].get_ydata(), kernels["b"].flatten())
    np.testing.assert_allclose(axes["c"].lines[0].get_ydata(), kernels["c"].flatten())
    assert [axes[name].get_xlabel() for name in "bc"] == ["position", "channel"]


def test_kernels_of_zeros_are_drawn(tmp_path):
    assert save_contact_sheet({"global": torch.zeros(2, 3, 3)}, tmp_path / "kernels.png").exists()


@pytest.mark.parametrize(
    ("kernels", "options", "message"),
    [
        ({}, {}, "no kernels"),
        ({"x": torch.zeros(3, 3)}, {}, r"got x of shape \(3, 3\)"),
        ({"x": torch.zeros(1, 3, 3)}, {"channels": 0}, "at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, kernels, options, message):
    with pytest.raises(ValueError, match=message):
        save_contact_sheet(kernels, tmp_path / "kernels.png", **options)
    assert not (tmp_path / "kernels.png").exists()
