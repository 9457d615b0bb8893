"""Transforms of images for re-identification: the whole image is kept, shifted, flipped and partly erased."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from visionattn.data.normalisation import Normalisation
from visionattn.data.reid.transforms import reid_transform
from visionattn.data.sampling import generators_kept, seed_generators

PREPROCESSING = {"input_size": (3, 8, 4), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "nearest"}
OFF: dict[str, Any] = {"hflip": 0.0, "padding": 0, "re_prob": 0.0, "re_mode": "const"}

# No two pixels are alike, and none is black.
NUMBERED = Image.fromarray(np.arange(1, 8 * 4 * 3 + 1, dtype=np.uint8).reshape(8, 4, 3))


def plain(image: Image.Image) -> Tensor:
    """Convert an image of the right size to values from -1 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


def normalised(image: Tensor) -> Tensor:
    return Normalisation.of(PREPROCESSING).normalise_bytes(image)


def transformed(image: Image.Image, times: int, size: tuple[int, int] = (8, 4), **augmentation: Any) -> list[Tensor]:
    transform = reid_transform({**PREPROCESSING, "input_size": (3, *size)}, {**OFF, **augmentation})
    images = []
    for seed in range(times):
        with generators_kept():
            seed_generators(seed)
            images.append(normalised(transform(image)))
    return images


def test_images_are_normalised() -> None:
    torch.testing.assert_close(normalised(reid_transform(PREPROCESSING)(NUMBERED)), plain(NUMBERED))
    (image,) = transformed(NUMBERED, 1)
    torch.testing.assert_close(image, plain(NUMBERED))


@pytest.mark.parametrize("size", [(90, 30), (30, 90), (4, 8)], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_whole_image_is_kept_for_any_aspect(size: tuple[int, int], training: bool) -> None:
    quarters = np.zeros((2, 2, 3), np.uint8)
    quarters[0, 1], quarters[1, 0], quarters[1, 1] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    original = Image.fromarray(quarters).resize(size, Image.Resampling.NEAREST)
    image = reid_transform(PREPROCESSING, OFF if training else None)(original)
    expected = plain(Image.fromarray(quarters)).repeat_interleave(4, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(normalised(image), expected)


def test_flips() -> None:
    upright, flipped = plain(NUMBERED), plain(NUMBERED).flip(2)
    torch.testing.assert_close(transformed(NUMBERED, 1, hflip=1.0)[0], flipped)
    images = transformed(NUMBERED, 200, hflip=0.25)
    share = sum(torch.allclose(image, flipped) for image in images) / 200
    assert 0.15 < share < 0.35
    assert sum(torch.allclose(image, upright) for image in images) == 200 - share * 200


def test_padded_crop_holds_black_pixels() -> None:
    padded = torch.nn.functional.pad(plain(NUMBERED), (2, 2, 2, 2), value=-1)
    windows = [padded[:, top : top + 8, left : left + 4] for top in range(5) for left in range(5)]
    seen = set()
    for image in transformed(NUMBERED, 300, padding=2):
        (place,) = [n for n, window in enumerate(windows) if torch.allclose(image, window, atol=1e-6)]
        seen.add(place)
    assert len(seen) == 25


def erased_parts(**options: Any) -> list[Tensor]:
    """Return the erased parts of white images of 64×32 pixels."""
    images = transformed(Image.new("RGB", (32, 64), (255, 255, 255)), 100, (64, 32), **options)
    return [(image != 1).any(0) for image in images if (image != 1).any()]


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erased_rectangle_is_at_most_two_fifths(mode: str) -> None:
    parts = erased_parts(re_prob=1.0, re_mode=mode)
    assert len(parts) >= 98  # timm gives up where the rectangle does not fit ten times in a row
    areas = []
    for part in parts:
        rows, columns = part.any(1).nonzero(), part.any(0).nonzero()
        height, width = (int(side.max() - side.min()) + 1 for side in (rows, columns))
        assert part.sum() == height * width
        areas.append(height * width / (64 * 32))
    assert 0.01 < min(areas) < 0.1
    assert 0.36 < max(areas) < 0.42


def test_share_of_erased_images_is_re_prob() -> None:
    assert not erased_parts(re_prob=0.0)
    assert 35 < len(erased_parts(re_prob=0.5)) < 65


def test_erased_content_follows_re_mode() -> None:
    white = Image.new("RGB", (32, 64), (255, 255, 255))
    for mode, colours in (("const", 1), ("rand", 1), ("pixel", None)):
        (image,) = transformed(white, 1, (64, 32), re_prob=1.0, re_mode=mode)
        erased = image[:, (image != 1).any(0)]
        assert len(erased.unique(dim=1).T) == (colours or erased.shape[1])
        assert (mode == "const") == (not erased.any())
