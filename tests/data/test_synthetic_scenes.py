"""The embedded scenes: the same on every machine, with segments that are exactly what is seen."""

import random
import zlib

import numpy as np
import pytest
import torch

from visionattn.data import DataError
from visionattn.data.drawing import shapes
from visionattn.data.scenes.synthetic import PALETTE, Synthetic

CHECKSUMS = [  # split, options, then those of 20 scenes' segments, classes and images
    ("train", {}, 240611100, 947133337, 3299392243),
    ("validation", {}, 48900300, 2590167617, 2226747906),
    ("train", {"image_size": 96, "max_objects": 10}, 1780100454, 694547779, 3820367107),
    ("train", {"textured": False}, 240611100, 947133337, 1940220196),
]


def checksums(scenes: Synthetic) -> tuple[int, ...]:
    sums = [0, 0, 0]
    for scene in (scenes[index] for index in range(20)):
        for number, part in enumerate((scene.segments.astype("<i4"), scene.classes.astype("<i8"), scene.image)):
            sums[number] = zlib.crc32(part.tobytes(), sums[number])
    return tuple(sums)


@pytest.mark.parametrize(("split", "options", "segments", "classes", "images"), CHECKSUMS)
def test_scenes_never_change(split, options, segments, classes, images):
    # Or results would not compare with those of other machines and of earlier versions.
    assert checksums(Synthetic(split, **options)) == (segments, classes, images)


def test_scene_does_not_depend_on_the_order_of_draws():
    scenes = Synthetic("train")
    first = [scenes[index].image.tobytes() for index in (3, 4, 5)]
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    assert [scenes[index].image.tobytes() for index in (5, 4, 3)] == first[::-1]
    assert Synthetic("train", length=6)[5].image.tobytes() == first[2]


def test_splits_and_scenes_differ():
    images = {Synthetic(split)[index].image.tobytes() for split in ("train", "validation") for index in range(50)}
    assert len(images) == 100
    assert [len(Synthetic(split)) for split in ("train", "training", "validation", "val")] == [10_000] * 2 + [1_000] * 2
    assert Synthetic("validation").name(7) == "synthetic/validation/00007"


@pytest.mark.parametrize(("image_size", "max_objects"), [(64, 6), (64, 2), (16, 12), (40, 12)])
def test_objects_are_all_visible(image_size, max_objects):
    scenes, numbers = Synthetic("train", image_size=image_size, max_objects=max_objects), set()
    for scene in (scenes[index] for index in range(150)):
        assert scene.image.size == scene.segments.shape == (image_size, image_size)
        seen = np.bincount(scene.segments.ravel())
        assert len(seen) == len(scene.classes) == len(scene.things)
        assert seen[0] == 0
        assert (seen[1:] >= max(1, image_size**2 // 256)).all()
        assert seen[1] >= image_size**2 // 8
        assert scene.things.tolist() == [False, False] + [True] * (len(seen) - 2)
        assert scene.classes[:2].tolist() == [-1, 0]
        assert (scene.classes[2:] > 0).all()
        assert (scene.classes < len(scenes.class_names)).all()
        numbers.add(len(seen) - 2)
    assert min(numbers) == 2
    assert max(numbers) <= max_objects
    if image_size == 64:
        assert numbers == set(range(2, max_objects + 1))


def test_scenes_show_all_shapes_and_patterns():
    scenes = [Synthetic("train")[index] for index in range(100)]
    kinds = np.bincount(np.concatenate([scene.classes[2:] for scene in scenes]))
    assert len(kinds) == len(Synthetic.class_names)
    assert kinds[0] == 0
    assert kinds[1:].min() > 0.5 * kinds[1:].mean()


def test_plain_segments_have_one_colour_each():
    for scene in (Synthetic("train", textured=False, max_objects=12)[index] for index in range(40)):
        pixels = np.asarray(scene.image)
        colours = [np.unique(pixels[scene.segments == number], axis=0) for number in range(1, len(scene.classes))]
        assert {len(colour) for colour in colours} == {1}
        apart = np.abs(np.stack(colours)[:, 0].astype(int)[:, None] - np.concatenate(colours)).max(-1)
        assert apart[~np.eye(len(apart), dtype=bool)].min() > 20


def test_textured_segments_are_shades_of_their_colour():
    varied = []
    for scene in (Synthetic("train")[index] for index in range(40)):
        pixels = np.asarray(scene.image).astype(int)
        for number in range(1, len(scene.classes)):
            colours = np.unique(pixels[scene.segments == number], axis=0)
            assert len(colours) <= shapes.LEVELS
            assert np.abs(colours - colours[0]).max() <= 70
            varied.append(len(colours) > 1)
    assert 0.5 < np.mean(varied) < 0.8


def test_segments_are_of_the_class_that_is_drawn(monkeypatch):
    drawn = []

    def draw(shape, *args):
        mask = shapes.draw_shape(shape, *args)
        drawn.append((shape, mask))
        return mask

    monkeypatch.setattr("visionattn.data.scenes.synthetic.draw_shape", draw)
    for index in range(20):
        drawn.clear()
        scene = Synthetic("train")[index]
        for number in range(2, len(scene.classes)):
            seen = scene.segments == number
            shape = Synthetic.class_names[scene.classes[number]]
            mask, *_ = [mask for kind, mask in drawn if kind == shape and (seen <= mask).all()]
            assert seen.sum() >= mask.sum() // 3
            assert (scene.segments[mask & ~seen] > number).all()  # only what is nearer hides it


def test_sizes_follow_the_image():
    def share(size):
        scenes = Synthetic("train", image_size=size)
        return np.mean([(scenes[index].segments > 1).mean() for index in range(40)])

    assert share(48) == pytest.approx(share(192), rel=0.15)


@pytest.mark.parametrize("index", [-1, 5])
def test_index_beyond_the_length_is_refused(index):
    with pytest.raises(IndexError, match=f"there are 5 synthetic scenes for val, got number {index}"):
        Synthetic("val", length=5)[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length of synthetic scenes must be at least 1 and"),
        ({"image_size": 8}, "image_size of synthetic scenes must be at least 16 and at most 4,096, got 8"),
        ({"max_objects": 1}, "max_objects of synthetic scenes must be at least 2"),
        ({"max_objects": len(PALETTE)}, f"at most {len(PALETTE) - 1}, got {len(PALETTE)}"),
    ],
)
def test_options_out_of_bounds_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        Synthetic("train", **options)
