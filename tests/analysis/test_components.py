"""Principal components of patches: against numpy's SVD, a known foreground, and colours of known parts."""

import numpy as np
import pytest
import timm
import torch

import visionattn  # noqa: F401  registers its models
from visionattn.analysis.components import fit_colours, otsu_threshold, patch_features, separate_foreground
from visionattn.probing.frozen import FrozenBackbone

DIM, GRID = 24, 8


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def scenes(rng, count=6, noise=0.05):
    """Return features of images with a square of an upper and a lower part on a background, and their parts."""
    kinds = np.eye(DIM)[:3] * np.array([[0.0], [4.0], [4.0]]) + np.eye(DIM)[4] * np.array([[-6.0], [6.0], [6.0]])
    parts = np.zeros((count, GRID, GRID), int)
    for number in range(count):
        top, left = rng.integers(1, 4, 2)
        parts[number, top : top + 2, left : left + 4] = 1
        parts[number, top + 2 : top + 4, left : left + 4] = 2
    return kinds[parts] + rng.normal(0, noise, (*parts.shape, DIM)), parts


def test_components_are_those_of_a_singular_value_decomposition(rng):
    features = rng.normal(size=(3, 5, 7, DIM)) * np.linspace(3, 0.5, DIM) + 2
    found = fit_colours(features, foreground=False)
    flat = features.reshape(-1, DIM)
    _, values, rows = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs((found.directions * rows[:3]).sum(1)), 1, atol=1e-9)
    np.testing.assert_allclose(found.explained, values[:3] ** 2 / (values**2).sum(), atol=1e-9)
    scores = (flat - flat.mean(0)) @ found.directions.T
    low, high = np.percentile(scores, [2, 98], axis=0)
    expected = np.clip((scores - low) / (high - low), 0, 1).reshape(3, 5, 7, 3)
    np.testing.assert_allclose(found(features).colours, expected, atol=1e-9)
    assert found(features).foreground.all()


def test_foreground_is_found_whatever_the_sign_of_features(rng):
    features, parts = scenes(rng)
    for sign in (1, -1):
        np.testing.assert_array_equal(separate_foreground(sign * features)(sign * features), parts > 0)
        np.testing.assert_array_equal(fit_colours(sign * features)(sign * features).foreground, parts > 0)


def test_large_foreground_is_not_taken_for_the_background(rng):
    parts = np.zeros((4, GRID, GRID), int)
    parts[:, 1:-1, 1:-1] = 1  # more than half of the patches
    features = np.eye(DIM)[parts] + rng.normal(0, 0.02, (*parts.shape, DIM))
    np.testing.assert_array_equal(separate_foreground(features)(features), parts > 0)


def test_parts_have_one_colour_in_all_images(rng):
    features, parts = scenes(rng)
    colours = fit_colours(features)(features).colours
    means = np.stack([[colours[number][parts[number] == part].mean(0) for part in (1, 2)] for number in range(6)])
    assert means.std(0).max() < 0.15
    assert np.abs(means[:, 0] - means[:, 1]).max(-1).min() > 0.5  # and two parts have two colours


def test_colours_of_two_halves_agree(rng):
    features, parts = scenes(rng, count=12)
    first, second = (fit_colours(half)(features).colours[parts > 0] for half in (features[:6], features[6:]))
    assert np.abs(first[:, 0] - second[:, 0]).max() < 0.2  # the one component that parts differ in
    assert np.ptp(first[:, 0]) > 0.8


def test_outlier_does_not_dim_the_other_patches(rng):
    features = rng.normal(size=(2, GRID, GRID, DIM)) * np.linspace(3, 0.5, DIM)
    features[0, 0, 0, 0] = 60
    colours = fit_colours(features, foreground=False)(features).colours.reshape(-1, 3)
    assert np.ptp(colours[1:, 0]) > 0.95
    assert colours.min() == 0
    assert colours.max() == 1


def test_otsu_threshold_has_the_least_variance_within_groups(rng):
    scores = np.concatenate([rng.normal(0, 1, 40), rng.normal(5, 2, 23)])

    def within(threshold):
        return sum(part.size * part.var() for part in (scores[scores < threshold], scores[scores >= threshold]))

    ordered = np.sort(scores)
    found = otsu_threshold(scores)
    assert within(found) == pytest.approx(min(within(middle) for middle in (ordered[:-1] + ordered[1:]) / 2))
    assert found in (ordered[:-1] + ordered[1:]) / 2


@pytest.mark.parametrize(
    ("name", "layer"), [("vit_pico_patch4_32", "last"), ("vit_pico_patch4_32", 2), ("nat_pico", 1)]
)
def test_patch_features_are_those_of_the_layer_row_by_row(name, layer):
    model = timm.create_model(name, num_classes=0).eval()
    backbone = FrozenBackbone(model, name, [layer])
    images = torch.randn(3, 3, 32, 32)
    found = patch_features(backbone, images, batch_size=2)
    with torch.no_grad():
        if layer == "last":
            expected = model.forward_features(images)[:, 1:].unflatten(1, (8, 8))
        else:
            (expected,) = model.forward_intermediates(images, indices=[layer], norm=False, intermediates_only=True)
            expected = expected.permute(0, 2, 3, 1)
            if name.startswith("vit"):
                expected = model.norm(expected)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((4, 8)), r"features of patches are finite numbers \[P, R, C, D\], got \[4, 8\]"),
        (np.full((1, 4, 4, 8), np.nan), "finite"),
        (np.zeros((1, 1, 2, 8)), "at least 3 patches and 3 features, got 2 and 8; take more images"),
        (np.zeros((1, 4, 4, 2)), "got 16 and 2"),
    ],
    ids=["shape", "NaN", "patches", "features"],
)
def test_features_without_three_components_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        fit_colours(features, foreground=False)


def test_several_layers_are_refused():
    backbone = FrozenBackbone(timm.create_model("nat_pico", num_classes=0), "nat_pico", [0, 1])
    with pytest.raises(ValueError, match=r"one layer, got layers \[0, 1\]"):
        patch_features(backbone, torch.zeros(1, 3, 32, 32))
