"""COCO panoptic as its authors publish it: numbers in colours, kinds in a table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionattn.data import DataError
from visionattn.data.scenes import UNLABELLED, open_scenes

CATEGORIES = [
    {"id": 200, "name": "rug", "isthing": 0},
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 13, "name": "stop sign", "isthing": 1},
]
# Numbers that need one, two and three channels, and the void between them.
NUMBERS = np.array([[7, 7, 300, 300, 0], [7, 7, 300, 300, 0], [70000, 70000, 70000, 9, 9]])
SEGMENTS = [
    {"id": 70000, "category_id": 200, "iscrowd": 0},
    {"id": 7, "category_id": 1, "iscrowd": 0},
    {"id": 300, "category_id": 13, "iscrowd": 0},
    {"id": 9, "category_id": 1, "iscrowd": 1},
]


def write(root: Path, split: str = "val", numbers: np.ndarray = NUMBERS, **changes: Any) -> Path:
    (root / f"{split}2017").mkdir(parents=True)
    masks = root / "annotations" / f"panoptic_{split}2017"
    masks.mkdir(parents=True)
    table = {
        "images": [{"id": 5, "file_name": "000005.jpg"}, {"id": 2, "file_name": "000002.jpg"}],
        "annotations": [
            {"image_id": 5, "file_name": "000005.png", "segments_info": SEGMENTS},
            {"image_id": 2, "file_name": "000002.png", "segments_info": []},
        ],
        "categories": CATEGORIES,
    } | changes
    masks.with_suffix(".json").write_text(json.dumps(table))
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(masks / "000005.png")
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(masks / "000002.png")
    Image.new("RGB", (5, 3), (10, 200, 30)).save(root / f"{split}2017" / "000005.jpg")
    Image.new("L", (6, 4), 99).save(root / f"{split}2017" / "000002.jpg")
    return root


def opened(root: Path, split: str = "validation") -> Any:
    return open_scenes("coco_panoptic", str(root), split)


def test_colours_are_numbers_and_the_table_says_of_what(tmp_path: Path) -> None:
    scenes = opened(write(tmp_path))
    assert list(scenes.class_names) == ["person", "stop sign", "rug"]
    assert [scenes.name(index) for index in range(len(scenes))] == [
        str(tmp_path / "val2017" / f"{number:06d}.jpg") for number in (2, 5)
    ]
    scene = scenes[1]
    assert (scene.image.mode, scene.image.size, scene.segments.dtype) == ("RGB", (5, 3), np.int32)
    assert scene.segments.tolist() == [[1, 1, 2, 2, 0], [1, 1, 2, 2, 0], [3, 3, 3, 0, 0]]
    assert scene.classes.tolist() == [-1, 0, 1, 2]
    assert scene.things.tolist() == [False, True, True, False]


def test_void_alone_is_a_scene_without_segments(tmp_path: Path) -> None:
    scene = opened(write(tmp_path))[0]
    assert (scene.segments == UNLABELLED).all()
    assert (scene.image.mode, scene.classes.tolist(), scene.things.tolist()) == ("RGB", [-1], [False])


@pytest.mark.parametrize(
    ("written", "asked"), [("train", "train"), ("val", "validation"), ("val", "val2017"), ("mini", "mini")]
)
def test_splits_are_found(tmp_path: Path, written: str, asked: str) -> None:
    assert len(opened(write(tmp_path, written), asked)) == 2


def test_segment_missing_in_the_table_is_named(tmp_path: Path) -> None:
    scenes = opened(write(tmp_path, numbers=np.where(NUMBERS == 9, 8, NUMBERS)))
    with pytest.raises(
        ValueError, match=r"panoptic_val2017.json does not say what segment 8 of its mask 000005.png is"
    ):
        scenes[1]


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    scenes = opened(write(tmp_path))
    Image.new("RGB", (3, 5)).save(tmp_path / "val2017" / "000005.jpg")
    with pytest.raises(ValueError, match="it has 3×5 pixels, and its mask 5×3"):
        scenes[1]


def test_missing_or_truncated_files_are_named(tmp_path: Path) -> None:
    scenes = opened(write(tmp_path))
    mask = tmp_path / "annotations" / "panoptic_val2017" / "000005.png"
    mask.write_bytes(mask.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"its mask {mask} cannot be read"):
        scenes[1]
    mask.unlink()
    with pytest.raises(ValueError, match=f"there is no mask {mask}"):
        scenes[1]
    (tmp_path / "val2017" / "000005.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        scenes[1]


def test_missing_annotations_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no such data folder: .*nowhere \(--data.root\)\. COCO panoptic is expected as"
    ):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no .*panoptic_train2017.json\. .*train2017/\*.jpg.*cocodataset.org"):
        opened(write(tmp_path), "train")


def without(records: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != key} for record in records]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"categories": without(CATEGORIES, "isthing")}, "category 1 has no isthing"),
        ({"categories": CATEGORIES[:1]}, "of 000005.jpg has category_id .*, which is not among the categories"),
        ({"images": []}, "an annotation is of image 2, which is not among the images"),
        ({"annotations": [{"image_id": 5}]}, "the annotation of 000005.jpg has no segments_info"),
        ({"annotations": [{"image_id": 5, "segments_info": [{"id": 7}]}]}, "segment 7 of 000005.jpg has no iscrowd"),
    ],
)
def test_annotation_without_a_key_is_named_with_its_image(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=rf"panoptic_val2017.json: .*{says}; correct it, or download the file again"):
        opened(write(tmp_path, **changes))


def test_damaged_annotations_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"panoptic_val2017.json is damaged or holds no panoptic .*download it again"):
        opened(write(tmp_path, annotations=None))


def test_annotations_that_are_cut_off_or_empty_are_named(tmp_path: Path) -> None:
    table = write(tmp_path) / "annotations" / "panoptic_val2017.json"
    table.write_text(table.read_text()[:100])
    with pytest.raises(DataError, match="is damaged or holds no panoptic annotations"):
        opened(tmp_path)
    write(tmp_path / "empty", annotations=[])
    with pytest.raises(DataError, match="lists no images: download it again"):
        opened(tmp_path / "empty")


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation"])
def test_real_images(coco_panoptic_root: Path, split: str) -> None:
    scenes = opened(coco_panoptic_root, split)
    table = json.loads(next(coco_panoptic_root.glob(f"annotations/*{split[:3]}*.json")).read_text())
    assert (len(scenes), len(scenes.class_names)) == (len(table["annotations"]), 133)
    entries = sorted(table["annotations"], key=lambda entry: entry["image_id"])
    numbers = {category["id"]: index for index, category in enumerate(table["categories"])}
    for index, entry in enumerate(entries):
        scene = scenes[index]
        # The table counts the positions of each segment.
        areas = np.bincount(scene.segments.ravel(), minlength=len(scene.classes))[1:]
        known = sorted((s for s in entry["segments_info"] if not s["iscrowd"]), key=lambda segment: segment["id"])
        assert areas.tolist() == [segment["area"] for segment in known]
        assert scene.classes[1:].tolist() == [numbers[segment["category_id"]] for segment in known]
