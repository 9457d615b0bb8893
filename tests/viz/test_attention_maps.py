"""Sheets of attention maps: clusters and colours."""

import numpy as np
import pytest
from PIL import Image

from visionattn.viz.attention_maps import COLOURS, cluster_maps, draw_attention_maps, save_attention_maps

GRID = (4, 4)
KINDS = np.array([0, 1, 0, 2, 1, 0])


@pytest.fixture
def maps() -> np.ndarray:
    """Make six maps of three kinds on five images; each kind has another place in each image."""
    rng = np.random.default_rng(0)
    peaks = np.stack([rng.permutation(16)[:3] for _ in range(5)])
    weights = 0.02 * rng.random((5, 6, 16))
    for image in range(5):
        weights[image, np.arange(6), peaks[image, KINDS]] += 1
    return weights / weights.sum(-1, keepdims=True)


def test_maps_of_the_same_places_share_a_cluster_over_all_images(maps):
    # The largest first: three maps of kind 0, two of kind 1.
    np.testing.assert_array_equal(cluster_maps(maps, 3), KINDS)
    # Neither the scale of the weights nor the order of the maps matters.
    order = [3, 4, 1, 0, 5, 2]
    np.testing.assert_array_equal(cluster_maps(7 * maps[:, order], 3), KINDS[order])
    np.testing.assert_array_equal(cluster_maps(maps, 9), np.arange(6))
    assert set(cluster_maps(np.ones((2, 5, 4)), 2)) == {0, 1}  # maps without any structure, too


def test_colour_marks_the_places_of_its_maps_in_every_image(maps):
    grey = np.full((32, 32, 3), 128, np.uint8)
    sheet = draw_attention_maps([grey] * 5, maps, GRID, KINDS, height=32).astype(int)
    assert sheet.shape == (6 + 26 + 5 * 38, 6 + 5 * 38, 3)
    for image in range(5):
        top = 32 + 38 * image
        assert (sheet[top : top + 32, 6:38] == 128).all()
        for kind in range(3):
            row, column = divmod(maps[image, kind == KINDS].sum(0).argmax(), 4)
            for panel in (1, 2 + kind):  # of all maps, and of this kind alone
                left = 6 + 38 * panel
                centre = sheet[top + 8 * row + 4, left + 8 * column + 4]
                distances = [np.abs(centre - colour).sum() for colour in COLOURS]
                assert np.argmin(distances) == kind
            alone = sheet[top : top + 32, left : left + 32]
            far = np.array([[max(abs(y // 8 - row), abs(x // 8 - column)) > 1 for x in range(32)] for y in range(32)])
            assert alone[far].max() < 100  # dimmed


def test_sheet_is_written(tmp_path, maps):
    path = save_attention_maps([Image.new("RGB", (20, 20))] * 5, maps, GRID, tmp_path / "new" / "maps.png", 2)
    with Image.open(path) as image:
        assert image.size == (6 + 4 * 118, 6 + 26 + 5 * 118)


@pytest.mark.parametrize(
    ("maps", "clusters", "message"),
    [
        (np.ones((1, 2, 9)), [0, 1], r"grid of 4×4 patches do not fit maps of shape \[1, 2, 9\]"),
        (np.ones((2, 16)), [0, 1], r"maps are weights \[images, maps, patches\]"),
        (-np.ones((1, 2, 16)), [0, 1], "finite and not negative"),
        (np.ones((1, 2, 16)), [0, 7], "numbers from 0 to 6, got 0 to 7"),
    ],
)
def test_wrong_arguments_are_named(maps, clusters, message):
    with pytest.raises(ValueError, match=message):
        draw_attention_maps([Image.new("RGB", (20, 20))], maps, GRID, clusters)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cluster_maps(np.ones((1, 2, 16)), 0)
