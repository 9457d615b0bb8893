"""Images and their segments stay together, whatever is done to their size."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.data.scenes import Scene
from visionattn.data.scenes.synthetic import Synthetic
from visionattn.data.scenes.transforms import SceneTransform, crop_box


def transform(size: tuple[int, int], hflip: float = 0.0, **changes: Any) -> SceneTransform:
    plain = {"interpolation": "bicubic", "crop_mode": "center"}
    return SceneTransform({"input_size": (3, *size), **plain, **changes}, hflip)


def blocks(columns: int = 6, rows: int = 4, edge: int = 20) -> Scene:
    """A segment for each block, in a colour of its own."""
    numbers = (np.arange(columns * rows).reshape(rows, columns) + 1).repeat(edge, 0).repeat(edge, 1)
    colours = np.stack([numbers * 10, 255 - numbers * 10, numbers * 5], axis=-1).astype(np.uint8)
    count = columns * rows
    classes = np.array([-1, *range(count)])
    return Scene(Image.fromarray(colours), numbers.astype(np.int32), classes, classes % 2 == 0)


def test_scene_of_the_right_size_is_unchanged() -> None:
    scene = Synthetic("train")[0]
    seen = transform((64, 64))(scene)
    assert torch.equal(seen.image.permute(1, 2, 0), torch.from_numpy(np.array(scene.image)))
    assert np.array_equal(seen.segments.numpy(), scene.segments)
    assert (seen.image.dtype, seen.segments.dtype) == (torch.uint8, torch.int64)
    assert (seen.classes.dtype, seen.things.dtype) == (torch.int64, torch.bool)
    assert seen.classes.tolist() == scene.classes.tolist()
    assert seen.things.tolist() == scene.things.tolist()


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(40, 40), (37, 53), (200, 200), (80, 40)])
def test_segments_lie_where_their_colours_are(size: tuple[int, int], crop_mode: str) -> None:
    scene = blocks()
    seen = transform(size, crop_mode=crop_mode, interpolation="nearest")(scene)
    assert seen.image.shape == (3, *size)
    assert torch.equal(seen.image[0].long(), seen.segments * 10)
    smooth = transform(size, crop_mode=crop_mode)(scene)
    assert torch.equal(smooth.segments, seen.segments)  # ids stay ids
    assert ((smooth.image.float() - seen.image.float()).abs().amax(0) < 5).float().mean() > 0.5  # but for seams


def test_squash_keeps_all_and_center_the_middle() -> None:
    whole = transform((40, 40), crop_mode="squash")(blocks())
    assert whole.segments.unique().tolist() == list(range(1, 25))
    middle = transform((40, 40))(blocks())  # 120×80 pixels: of 6 columns the outermost are cut off
    assert middle.segments.unique().tolist() == [n for n in range(1, 25) if n % 6 not in (0, 1)]
    assert whole.classes.tolist() == middle.classes.tolist() == blocks().classes.tolist()


@pytest.mark.parametrize(
    ("size", "wanted", "box"),
    [
        ((120, 80), (40, 40), (20, 0, 100, 80)),
        ((80, 120), (40, 40), (0, 20, 80, 100)),
        ((80, 120), (20, 30), (0, 0, 80, 120)),
        ((5, 5), (50, 20), (0, 1.5, 5, 3.5)),
    ],
)
def test_crop_box_is_the_largest_centred_one(size: Any, wanted: Any, box: Any) -> None:
    assert crop_box(size, wanted) == pytest.approx(box)


def test_crop_box_is_within_the_image() -> None:
    # Rounding must not lead out of it: Pillow would refuse.
    for width, height, wanted in itertools.product(range(440, 480), (480, 640), (224, 518)):
        for size in ((width, height), (height, width)):
            left, top, right, bottom = crop_box(size, (wanted, wanted))
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]
            assert (right - left, bottom - top) == pytest.approx((width, width))


def test_flips_take_both() -> None:
    scene = blocks()
    plain, flipped = transform((40, 60))(scene), transform((40, 60), hflip=1.0)(scene)
    assert torch.equal(flipped.image, plain.image.flip(-1))
    assert torch.equal(flipped.segments, plain.segments.flip(-1))
    torch.manual_seed(0)
    half = transform((40, 60), hflip=0.5)
    assert 5 < sum(torch.equal(half(scene).segments, plain.segments) for _ in range(30)) < 25


def test_another_way_to_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="crop_mode must be one of center, squash, got 'border'"):
        transform((8, 8), crop_mode="border")
