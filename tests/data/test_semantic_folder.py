"""Folders of images and of masks whose values are numbers of classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionattn.data import DataError
from visionattn.data.scenes import open_scenes

VALUES = np.array([[0, 0, 2, 2], [0, 1, 2, 255], [1, 1, 1, 255]])


def write(root: Path, image: str = "images/a.jpg", mask: str = "labels/a.png", values: np.ndarray = VALUES) -> Path:
    for path in (root / image, root / mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (90, 120, 10)).save(root / image)
    Image.fromarray(values.astype(np.uint8)).save(root / mask)
    return root


def opened(root: Path, split: str = "validation") -> Any:
    return open_scenes("semantic_folder", str(root), split)


def class_map(scene: Any) -> list[list[int]]:
    return scene.classes[scene.segments].tolist()


def test_values_are_classes_and_255_is_unlabelled(tmp_path: Path) -> None:
    scenes = opened(write(tmp_path))
    assert class_map(scenes[0]) == [[0, 0, 2, 2], [0, 1, 2, -1], [1, 1, 1, -1]]
    assert not scenes[0].things.any()
    assert list(scenes.class_names) == [str(number) for number in range(255)]
    assert scenes.parts(0) == [tmp_path / "images/a.jpg", tmp_path / "labels/a.png"]


def test_masks_of_16_bits_and_with_a_palette(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "class_names.txt").write_text("\n".join(f"kind {number}" for number in range(400)))
    Image.fromarray(np.where(VALUES == 255, 65535, VALUES * 150 + 55).astype(np.uint16)).save(tmp_path / "labels/a.png")
    assert class_map(opened(tmp_path)[0]) == [[55, 55, 355, 355], [55, 205, 355, -1], [205, 205, 205, -1]]
    mask = Image.fromarray(VALUES.astype(np.uint8)).convert("P")
    mask.putpalette([7, 7, 7] * 256)
    mask.putdata(VALUES.ravel().tolist())
    mask.save(tmp_path / "labels/a.png")
    assert class_map(opened(tmp_path)[0]) == [[0, 0, 2, 2], [0, 1, 2, -1], [1, 1, 1, -1]]


def test_names_of_values_number_the_classes(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "class_names.json").write_text(json.dumps({"2": "sky", "0": None, "1": "tree"}))
    scenes = opened(tmp_path)
    assert list(scenes.class_names) == ["tree", "sky"]
    assert class_map(scenes[0]) == [[-1, -1, 1, 1], [-1, 0, 1, -1], [0, 0, 0, -1]]
    assert scenes.parts(0)[-1] == tmp_path / "class_names.json"


def test_names_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "class_names.txt").write_text("sky\ntree\nroad", encoding="utf-8-sig")
    assert list(opened(tmp_path).class_names) == ["sky", "tree", "road"]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}/a.jpg", "annotations/{}/a.png"),
        ("{}/images/a.jpg", "{}/annotations/a.png"),
        ("{}/images/deep/a.png", "{}/labels/deep/a.png"),
    ],
)
def test_splits_are_folders_around_images_or_in_them(tmp_path: Path, image: str, mask: str) -> None:
    write(tmp_path, image.format("training"), mask.format("training"), np.zeros((3, 4)))
    write(tmp_path, image.format("validation"), mask.format("validation"), np.ones((3, 4)))
    assert class_map(opened(tmp_path, "train")[0])[0][0] == 0
    assert class_map(opened(tmp_path)[0])[0][0] == 1
    assert len(opened(tmp_path)) == 1


def test_missing_split_does_not_take_the_images_of_another(tmp_path: Path) -> None:
    write(tmp_path, "images/train/a.jpg", "labels/train/a.png")
    with pytest.raises(DataError, match="no images with labels for validation"):
        opened(tmp_path)
