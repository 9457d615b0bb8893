"""Dominoes: digits above photos, how their classes are paired, and conflicts with other digits and photos."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from visionattn.data import DataError, ImageClassificationData, image_transform
from visionattn.data.conflicts import Conflicts
from visionattn.data.dominoes import Dominoes
from visionattn.data.mnist import MNIST
from visionattn.data.sources import open_source
from visionattn.data.torchvision_sets import TORCHVISION


def source(root: Path, split: str, name: str = "dominoes") -> Dominoes:
    found = open_source(name, str(root), split)
    assert isinstance(found, Dominoes)
    return found


def many(root: Path, pairing: Any, agreement: float = 0.95, count: int = 4000) -> Dominoes:
    """Pair the digits with many photos, which are never read."""
    names = {f"kind{number}": number for number in range(10)}
    photos: Any = SimpleNamespace(
        class_to_idx=names, targets=lambda: [number % 10 for number in range(count)], __len__=lambda: count
    )
    return Dominoes(MNIST(root, "train"), photos, pairing, agreement)


def bar(image: Image.Image) -> int:
    """Return the digit that the fixture drew: the position of a bar in a scan with a margin of two pixels."""
    rows = np.asarray(image)[2:30, 2:30, 0].mean(1)
    return int((rows[4:24].reshape(10, 2).mean(1)).argmax())


def test_image_is_a_digit_above_a_photo(dominoes_root: Path) -> None:
    found = source(dominoes_root, "train")
    assert len(found) == 40
    for index in (0, 17, 39):
        image, label = found.read(index)
        pixels = np.asarray(image)
        assert pixels.shape == (64, 32, 3)
        scan = np.asarray(found.digits.read(found.digit_places[index])[0])
        np.testing.assert_array_equal(pixels[:32], np.pad(scan, 2)[..., None].repeat(3, 2))
        assert (pixels[32:] == 20 * (index // 4) + index % 4).all()
        assert bar(image) == found.digit_classes[index]
        assert label == found.photo_classes[index] == index // 4
    assert list(found.class_to_idx or {})[:4] == ["0 airplane", "1 automobile", "2 bird", "3 cat"]
    assert "above" in found.name_of(3)
    assert found.name_of(3).startswith("mnist/train/")


@pytest.mark.parametrize("agreement", [0.95, 0.8, 0.0])
def test_cues_of_training_images_agree_in_a_share(mnist_root: Path, agreement: float) -> None:
    found = many(mnist_root, "train", agreement)
    agree = found.digit_classes == found.photo_classes
    assert agree.mean() == pytest.approx(agreement, abs=3 * (0.25 / len(agree)) ** 0.5)
    # What a conflict's label is, and that no digit tells which photo it is of another class of.
    assert found.targets() == found.photo_classes.tolist()
    shifts = np.bincount((found.digit_classes - found.photo_classes)[~agree] % 10, minlength=10)
    assert shifts[0] == 0
    if agreement == 0:
        assert shifts[1:].min() > 0.8 * len(agree) / 9


def test_pairs_of_other_splits_agree_always_or_never(mnist_root: Path) -> None:
    validation, conflicts = (many(mnist_root, pairing) for pairing in ("validation", "conflicts"))
    assert (validation.digit_classes == validation.photo_classes).all()
    assert (conflicts.digit_classes != conflicts.photo_classes).all()
    places = np.asarray(conflicts.digits.targets())[conflicts.digit_places]
    np.testing.assert_array_equal(places, conflicts.digit_classes)
    assert set(conflicts.digit_places) == set(range(40))  # any digit of a class is drawn


def test_pairs_are_the_same_in_each_run(dominoes_root: Path) -> None:
    for split in ("train", "validation", "conflicts"):
        one, other = source(dominoes_root, split), source(dominoes_root, split)
        np.testing.assert_array_equal(one.digit_places, other.digit_places)
    assert source(dominoes_root, "train").digit_places[:6].tolist() == [30, 10, 30, 20, 21, 1]


def test_classification_takes_the_whole_image(dominoes_root: Path) -> None:
    options: dict[str, Any] = {"num_workers": 0, "batch_size": 8, "mean": [0.0] * 3, "std": [1.0] * 3, "crop_pct": 1.0}
    data = ImageClassificationData("dominoes", str(dominoes_root), crop_padding=4, hflip=0.0, **options)
    data.setup("fit")
    assert data.describe() == "dominoes: 40 train, 20 validation images of 10 classes"
    assert data.preprocessing["input_size"] == (3, 64, 32)
    (batch, *_) = data.train_dataloader()
    assert batch.image.shape == (8, 3, 64, 32)
    (batch, *_) = data.val_dataloader()
    wanted = np.asarray(source(dominoes_root, "validation").read(5)[0], np.float32) / 255
    assert torch.equal(batch.to("cpu").image[5].movedim(0, -1), torch.from_numpy(wanted))
    data.setup("test")
    (batch, *_) = data.test_dataloader()
    assert batch.target.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    conflicts = ImageClassificationData("dominoes/0.5", str(dominoes_root), val_split="conflicts", **options)
    conflicts.setup("validate")
    assert torch.equal(next(iter(conflicts.val_dataloader())).image, batch.image)


def test_size_may_be_given_as_height_and_width(dominoes_root: Path) -> None:
    size: Any = [32, 16]
    data = ImageClassificationData("dominoes", str(dominoes_root), img_size=size, num_workers=0, batch_size=4)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader)).image.shape == (4, 3, 32, 16)
    padded: Any = {"img_size": (32, 64), "crop_padding": 4}
    data = ImageClassificationData("mnist", str(dominoes_root), in_chans=1, num_workers=0, batch_size=4, **padded)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).image.shape == (4, 1, 32, 64)
    for wrong, message in (
        ((64, 0), r"--data.img_size must be at least 1 .*got 0"),
        ([64], r"--data.img_size is one number, or height and width, got \[64\]"),
        ([64, 32, 3], r"--data.img_size is one number, or height and width, got \[64, 32, 3\]"),
    ):
        with pytest.raises(DataError, match=message):
            ImageClassificationData("dominoes", str(dominoes_root), img_size=wrong)
    assert ImageClassificationData(img_size=np.int64(16)).preprocessing["input_size"] == (3, 16, 16)


def test_photos_may_be_those_of_torchvision(dominoes_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake(CIFAR10):
        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.transform = self.target_transform = None
            self.classes = [f"kind{number}" for number in range(10)]
            self.targets = [number % 10 for number in range(20)]
            self.data = np.full((20, 32, 32, 3), 7 if train else 9, np.uint8)

    monkeypatch.setitem(TORCHVISION, "cifar10", replace(TORCHVISION["cifar10"], dataset=Fake))
    shutil.rmtree(dominoes_root / "cifar10")
    for split, shade in (("train", 7), ("test", 9)):
        found = source(dominoes_root, split)
        assert (np.asarray(found.read(3)[0])[32:] == shade).all()
        assert found.targets()[:3] == [0, 1, 2]
        assert len(found.archives()) == 2


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {"name": "dominoes/much"}, "the share of images whose cues agree lies between 0 and 1"),
        (None, {"name": "dominoes/1.5"}, "dominoes/1.5: the share"),
        (None, {"val_split": "val"}, "dominoes has no 'val' split: pass train, validation or conflicts"),
        (None, {"root": None}, "--data.name dominoes needs --data.root FOLDER, with MNIST/raw and cifar10"),
        (shutil.rmtree, {"name": "dominoes/1.5"}, "dominoes/1.5: the share"),
        (None, {"name": "Dominoes"}, "unknown data set 'Dominoes': digits, mnist, dominoes, "),
        (lambda root: shutil.rmtree(root / "MNIST"), {}, "no train-images-idx3-ubyte"),
        (
            lambda root: shutil.rmtree(root / "cifar10"),
            {},
            "no .*/cifar10/train/CLASS, and torch/cifar10 .* --data.download true",
        ),
        (lambda root: shutil.rmtree(root / "cifar10/train/frog"), {}, "CIFAR-10's ten classes, not of 9"),
    ],
    ids=[
        "no number",
        "above 1",
        "split",
        "no root",
        "above 1 without data",
        "capital",
        "no digits",
        "no photos",
        "nine classes",
    ],
)
def test_mistake_is_named(
    dominoes_root: Path, change: Callable[[Path], None] | None, options: dict[str, Any], message: str
) -> None:
    if change:
        change(dominoes_root)
    with pytest.raises(DataError, match=message):
        ImageClassificationData(**{"name": "dominoes", "root": str(dominoes_root), **options}).setup("fit")


def test_conflicts_differ_in_one_cue(dominoes_root: Path) -> None:
    found = source(dominoes_root, "test")
    plain = {"input_size": (3, 64, 32), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bicubic"}
    transform = image_transform({**plain, "crop_pct": 1.0, "crop_mode": "center"})
    pairs = Conflicts(found, [0, 3, 4, 11, 19], transform, batch_size=2)
    batches = list(pairs)
    assert len(pairs) == len(batches) == 3
    image, other_digit, other_photo, digit, photo = (torch.cat(parts) for parts in zip(*batches, strict=True))
    for index, place in enumerate([0, 3, 4, 11, 19]):
        wanted = np.asarray(found.read(place)[0], np.float32) / 255
        assert torch.equal(image[index].movedim(0, -1), torch.from_numpy(wanted))
    assert torch.equal(image[..., 32:, :], other_digit[..., 32:, :])
    assert torch.equal(image[..., :32, :], other_photo[..., :32, :])
    drawn = [bar(Image.fromarray((255 * each).byte().movedim(0, -1).numpy())) for each in other_digit]
    shown = ((255 * other_photo[:, 0, 40, 10]).round() // 20).long().tolist()
    for a, b, third, fourth in zip(digit.tolist(), photo.tolist(), drawn, shown, strict=True):
        assert len({a, b, third}) == len({a, b, fourth}) == 3
    again = list(pairs)
    assert all(
        torch.equal(*each) for one, two in zip(batches, again, strict=True) for each in zip(one, two, strict=True)
    )
