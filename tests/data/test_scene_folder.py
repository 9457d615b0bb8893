"""Folders of images and of masks whose values are numbers of instances."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionattn.data import DataError
from visionattn.data.scenes import open_scenes

NUMBERS = np.array([[0, 0, 3, 3], [0, 200, 3, 3], [0, 200, 200, 0]])


def grey(numbers: np.ndarray) -> Image.Image:
    return Image.fromarray(numbers.astype(np.uint8))


def deep(numbers: np.ndarray) -> Image.Image:
    return Image.fromarray((numbers * 300).astype(np.uint16))


def palette(numbers: np.ndarray) -> Image.Image:
    image = grey(numbers).convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.putdata(numbers.ravel().tolist())
    return image


def colour(numbers: np.ndarray) -> Image.Image:
    many = numbers * 30_000
    return Image.fromarray(np.stack([many % 256, many // 256 % 256, many // 65536], axis=-1).astype(np.uint8))


def write(root: Path, name: str = "a", mask: Image.Image | None = None, suffix: str = ".jpg") -> Path:
    image, numbers = root / "images" / f"{name}{suffix}", root / "instances" / f"{name}.png"
    for path in (image, numbers):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (90, 120, 10)).save(image)
    (mask or grey(NUMBERS)).save(numbers)
    return root


def opened(root: Path, split: str = "validation") -> Any:
    return open_scenes("folder", str(root), split)


@pytest.mark.parametrize(
    "mask",
    [grey, deep, palette, colour, lambda n: colour(n).convert("RGBA")],
    ids=["8", "16", "palette", "RGB", "RGBA"],
)
def test_values_are_instances_on_a_background(tmp_path: Path, mask: Any) -> None:
    scenes = opened(write(tmp_path, mask=mask(NUMBERS)))
    scene = scenes[0]
    assert scene.segments.tolist() == [[1, 1, 2, 2], [1, 3, 2, 2], [1, 3, 3, 1]]
    assert scene.segments.dtype == np.int32
    assert scene.classes.tolist() == [-1, 0, 1, 1]
    assert scene.things.tolist() == [False, False, True, True]
    assert list(scenes.class_names) == ["background", "object"]


def test_mask_needs_no_background(tmp_path: Path) -> None:
    scene = opened(write(tmp_path, mask=grey(NUMBERS + 1)))[0]
    assert scene.things.tolist() == [False, True, True, True]
    assert scene.classes.tolist() == [-1, 1, 1, 1]


def test_images_of_all_kinds_come_in_order(tmp_path: Path) -> None:
    for name, suffix in (("b", ".PNG"), ("a", ".jpeg"), ("c/d", ".jpg")):
        write(tmp_path, name, suffix=suffix)
    (tmp_path / "images" / "._a.jpg").touch()
    (tmp_path / "images" / "notes.txt").touch()
    scenes = opened(tmp_path)
    names = [Path(scenes.name(index)).relative_to(tmp_path / "images") for index in range(len(scenes))]
    assert [str(name) for name in names] == ["a.jpeg", "b.PNG", "c/d.jpg"]
    assert scenes[2].image.mode == "RGB"


def test_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "extra"):
        write(tmp_path / split, f"of {split}")
    for asked, found in (("train", "train"), ("validation", "val"), ("extra", "extra")):
        assert opened(tmp_path, asked).name(0) == str(tmp_path / found / "images" / f"of {found}.jpg")
    (tmp_path / "train").rename(tmp_path / "other")
    with pytest.raises(DataError, match=r"no images folder for train in .*: expected are .*/images/…/NAME.jpg"):
        opened(tmp_path, "train")


def test_without_splits_all_are_the_same(tmp_path: Path) -> None:
    write(tmp_path)
    assert opened(tmp_path, "train").name(0) == opened(tmp_path, "validation").name(0)
    with pytest.raises(DataError, match="no images folder for extra in"):
        opened(tmp_path, "extra")


def test_missing_masks_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path, name)
    for name in ("b", "c"):
        (tmp_path / "instances" / f"{name}.png").unlink()
    with pytest.raises(DataError, match=r"2 of 3 images under .*: there is no .*instances/b.png for b.jpg; add it, or"):
        opened(tmp_path)


def test_missing_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such data folder: .*nowhere \(--data.root\): expected are"):
        opened(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"no images under .*images: expected are"):
        opened(tmp_path)


def test_unsuitable_masks_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", mask=grey(NUMBERS[:2]))
    write(tmp_path, "b", mask=grey(NUMBERS).convert("LA"))
    write(tmp_path, "c")
    (tmp_path / "instances" / "c.png").write_bytes(b"no image")
    scenes = opened(tmp_path)
    for index, message in enumerate(
        [
            "it has 4×3 pixels, and its mask 4×2",
            "its mask .*b.png is of mode LA: it must be grey, with a palette, or in colour",
            "its mask .*c.png cannot be read",
        ]
    ):
        with pytest.raises(ValueError, match=message):
            scenes[index]


def test_hidden_system_and_other_files_are_counted(tmp_path: Path) -> None:
    write(write(tmp_path), ".ipynb_checkpoints/a")
    for name in ("Thumbs.db", "._a.jpg", "notes.txt"):
        (tmp_path / "images" / name).touch()
    says = (
        r"passed over hidden or system files and folders: 3 \(.*\); files that are not images Pillow reads: 1 \(.txt\)"
    )
    with pytest.warns(UserWarning, match=says):
        assert len(opened(tmp_path)) == 1
