"""ADE20K as its authors publish it: classes and instances in the channels of a PNG."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionattn.data import DataError
from visionattn.data.scenes import open_scenes
from visionattn.data.scenes.ade20k import NUM_CLASSES, STUFF

BUILDING, SKY, CAR = 312, 2420, 401
# Class and instance of each position: two cars, of which the second has the sky's blue.
CLASSES = np.array([[SKY, SKY, SKY, 0], [BUILDING, CAR, CAR, 0], [BUILDING, CAR, CAR, CAR]])
INSTANCES = np.array([[10, 10, 10, 0], [40, 90, 90, 0], [40, 10, 10, 10]])


def write(folder: Path, name: str, classes: np.ndarray = CLASSES, size: tuple[int, int] = (4, 3)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 10)).save(folder / f"{name}.jpg")
    channels = np.stack([classes // 256 * 10, classes % 256, INSTANCES], axis=-1).astype(np.uint8)
    Image.fromarray(channels).save(folder / f"{name}_seg.png")
    # What lies beside it, too: parts, and a mask of each instance.
    Image.fromarray(channels).save(folder / f"{name}_parts_1.png")
    (folder / name).mkdir()
    Image.new("L", size).save(folder / name / f"instance_000_{name}.png")


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    images = tmp_path / "ADE20K_2021_17_01" / "images" / "ADE"
    write(images / "training" / "urban" / "street", "ADE_train_00000002")
    write(images / "training" / "urban" / "alley", "ADE_train_00000003")
    write(images / "training" / "nature" / "lake", "ADE_train_00000001")
    write(images / "validation" / "urban" / "street", "ADE_val_00000001")
    return tmp_path


def opened(root: Path, split: str = "validation") -> Any:
    return open_scenes("ade20k", str(root), split)


def test_channels_are_classes_and_instances(ade20k: Path) -> None:
    scenes = opened(ade20k)
    scene = scenes[0]
    assert scene.segments.tolist() == [[4, 4, 4, 0], [1, 3, 3, 0], [1, 2, 2, 2]]
    assert scene.classes.tolist() == [-1, BUILDING - 1, CAR - 1, CAR - 1, SKY - 1]
    assert scene.things.tolist() == [False, True, True, True, False]
    assert scenes.class_names[CAR - 1] == str(CAR)
    assert len(scenes.class_names) == NUM_CLASSES > max(STUFF)


@pytest.mark.parametrize(
    "between", ["", "ADE20K_2021_17_01", "ADE20K_2021_17_01/images", "ADE20K_2021_17_01/images/ADE"]
)
def test_images_are_found_from_any_folder(ade20k: Path, between: str) -> None:
    assert [Path(opened(ade20k / between).name(0)).name] == ["ADE_val_00000001.jpg"]
    scenes = opened(ade20k / between, "train")
    names = [str(Path(scenes.name(index)).relative_to(ade20k)) for index in range(len(scenes))]
    folder = "ADE20K_2021_17_01/images/ADE/training"
    assert names == [
        f"{folder}/nature/lake/ADE_train_00000001.jpg",
        f"{folder}/urban/alley/ADE_train_00000003.jpg",
        f"{folder}/urban/street/ADE_train_00000002.jpg",
    ]


def test_folder_without_splits_is_one_data_set(tmp_path: Path) -> None:
    write(tmp_path, "b")
    write(tmp_path, "a")
    for split in ("train", "validation"):
        scenes = opened(tmp_path, split)
        assert [scenes.name(index) for index in range(len(scenes))] == [str(tmp_path / f"{x}.jpg") for x in "ab"]
    with pytest.raises(DataError, match="no extra split of ADE20K under"):
        opened(tmp_path, "extra")


def test_split_is_never_replaced_by_another(tmp_path: Path) -> None:
    write(tmp_path / "training", "a")
    with pytest.raises(DataError, match=r"no validation split of ADE20K under .*/images/ADE/\{training,validation\}/"):
        opened(tmp_path)


def test_missing_files_are_named(tmp_path: Path, ade20k: Path) -> None:
    with pytest.raises(DataError, match=r"no such data folder: .*nowhere \(--data.root\)\. ADE20K is expected as"):
        opened(tmp_path / "nowhere")
    for mask in ade20k.rglob("ADE_val_*_seg.png"):
        mask.unlink()
    with pytest.raises(DataError, match=r"no images with NAME_seg.png beside NAME.jpg under .*ade20k.csail.mit.edu"):
        opened(ade20k)


def test_unsuitable_annotations_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", size=(8, 6))
    write(tmp_path, "b", classes=np.full((3, 4), NUM_CLASSES + 1))
    write(tmp_path, "c")
    (tmp_path / "c_seg.png").write_bytes(b"no image")
    scenes = opened(tmp_path)
    for index, message in enumerate(
        ["it has 8×6 pixels, and its mask 4×3", "class 3689, where ADE20K has 3,688", "c_seg.png cannot be read"]
    ):
        with pytest.raises(ValueError, match=message):
            scenes[index]


def test_images_without_a_mask_are_counted(ade20k: Path) -> None:
    (street,) = ade20k.rglob("validation/urban/street")
    Image.new("RGB", (4, 3)).save(street / "ADE_val_00000002.jpg")
    with pytest.warns(UserWarning, match=r"passed over images without NAME_seg.png: 1 \(first .*ADE_val_00000002.jpg"):
        assert len(opened(ade20k)) == 1


def test_hidden_and_system_files_are_no_scenes(ade20k: Path) -> None:
    street = ade20k / "ADE20K_2021_17_01" / "images" / "ADE" / "training" / "urban" / "street"
    for name in ("._ADE_train_00000002.jpg", "._ADE_train_00000002_seg.png", "ADE_train_00000002.json"):
        (street / name).write_bytes(b"x")
    write(street / "@eaDir", "ADE_train_00000002")
    with pytest.warns(UserWarning, match=r"training: passed over hidden or system files and folders: 3 \([^;]*$"):
        assert len(opened(ade20k, "train")) == 3
