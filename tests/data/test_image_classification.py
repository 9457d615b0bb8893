"""The DataModule: splits, classes, broken images, exactness across ranks."""

import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import FakeData

from visionattn.data import DataError, ImageClassificationData, UnreadableImageError
from visionattn.data.digits import Digits
from visionattn.data.sampling import EvalSampler, TrainSampler
from visionattn.data.sources import open_place
from visionattn.data.subsets import SourceSubset
from visionattn.data.torchvision_sets import TORCHVISION, TorchvisionSource

Write = Callable[..., Path]


def write_images(root: Path, counts: dict[str, int]) -> Path:
    """``counts`` maps ``split/class`` to a number of images, each of another colour."""
    rng = random.Random(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            colour = tuple(rng.randrange(256) for _ in range(3))
            Image.new("RGB", (20, 16), colour).save(root / folder / f"{number:02d}.jpg")
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "set", {"train/cat": 6, "train/dog": 5, "val/cat": 3, "val/dog": 2})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:150])


def module(root: Path | None = None, **options: object) -> ImageClassificationData:
    defaults: dict[str, object] = {"batch_size": 2, "img_size": 16, "num_workers": 0, "seed": 0}
    return ImageClassificationData(root=None if root is None else str(root), **{**defaults, **options})  # type: ignore[arg-type]


def fitted(root: Path | None = None, **options: object) -> ImageClassificationData:
    data = module(root, **options)
    data.setup("fit")
    return data


def test_digits_are_split_once_and_for_all() -> None:
    data = fitted(img_size=None, batch_size=64)
    train, val = (
        [name for batch in loader for name in batch.name] for loader in (data.train_dataloader(), data.val_dataloader())
    )
    assert data.num_classes == 10
    assert data.preprocessing["input_size"] == (3, 32, 32)
    assert len(val) == 355
    assert not set(train) & set(val)
    counts = torch.bincount(torch.cat([batch.target for batch in data.val_dataloader()]))
    assert counts.min() >= 34  # a fifth of each digit


@pytest.mark.parametrize("val", ["validation", "val", "test"])
def test_splits_are_found(tmp_path: Path, val: str) -> None:
    root = write_images(tmp_path / "set", {"train/a": 3, "train/b": 3, f"{val}/a": 1, f"{val}/b": 2})
    data = fitted(root)
    assert data.class_names == ["a", "b"]
    batches = list(data.val_dataloader())
    assert torch.cat([batch.target for batch in batches]).tolist() == [0, 1, 1]
    assert batches[0].image.shape == (2, 3, 16, 16)
    assert batches[0].name[0] == str(root / val / "a" / "00.jpg")


SCRIPT = """
import sys
from visionattn.data import ImageClassificationData, loading
loading.SIGTERM_GRACE = 3600
data = ImageClassificationData(root=sys.argv[1], img_size=16, batch_size=2, num_workers=1, seed=0)
data.setup("fit")
batches = iter(data.train_dataloader())
next(batches)
"""


def test_script_with_an_open_loader_ends_at_once(images: Path) -> None:
    """Python ends its workers by the signal that they outlive when a scheduler sends it."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(images)], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")


def test_splits_in_tars(images: Path) -> None:
    for split in ("train", "val"):
        with tarfile.open(images / f"{split}.tar", "w") as tar:
            tar.add(images / split, arcname=".")
        shutil.rmtree(images / split)
    data = fitted(images, num_workers=1)
    assert data.class_names == ["cat", "dog"]
    assert torch.cat([batch.target for batch in data.val_dataloader()]).tolist() == [0, 0, 0, 1, 1]
    assert sum(len(batch.image) for batch in data.train_dataloader()) == 10


def test_torchvision_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake(FakeData):
        classes = ("a", "b")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            super().__init__(6 if train else 4, (3, 20, 20), num_classes=2)

    monkeypatch.setitem(TORCHVISION, "cifar10", replace(TORCHVISION["cifar10"], dataset=Fake))
    data = fitted(tmp_path, name="torch/cifar10")
    assert data.class_names == ["a", "b"]
    assert [len(batch.image) for batch in data.val_dataloader()] == [2, 2]
    assert sum(len(batch.image) for batch in data.train_dataloader()) == 6


def test_absent_torchvision_set_is_named(tmp_path: Path) -> None:
    says = (
        rf"torch/cifar10 is not, or not complete, in {tmp_path}/cifar-10-batches-py; --data.download true downloads it"
    )
    with pytest.raises(DataError, match=says):
        fitted(tmp_path, name="torch/cifar10")


def test_grey_images(images: Path) -> None:
    data = fitted(images, in_chans=1, auto_augment="rand-m9-mstd0.5-inc1")
    assert next(iter(data.train_dataloader())).image.shape == (2, 1, 16, 16)
    assert next(iter(data.val_dataloader())).image.shape == (2, 1, 16, 16)


def test_class_without_validation_images_keeps_the_numbers(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set", {"train/a": 2, "train/b": 2, "train/c": 2, "val/a": 1, "val/c": 1})
    with pytest.warns(UserWarning, match="no images of class b"):
        data = fitted(root)
    assert torch.cat([batch.target for batch in data.val_dataloader()]).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no such data folder: .*set"),
        ({"train/a": 0, "val/a": 0}, "no images under .*train"),
        ({"train/a": 2, "train/b": 2}, "no validation split under .*; found train"),
        ({"a": 2, "b": 2}, "no train split under .*; found a, b.*train/CLASS"),
        ({"train/a": 2, "val/z": 2}, "class z, which the 1 classes"),
    ],
    ids=["no folder", "no images", "no validation", "no splits", "other classes"],
)
def test_missing_data_are_named(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    root = write_images(tmp_path / "set", counts)
    with pytest.raises(DataError, match=message):
        fitted(root)


def test_named_split_must_exist(images: Path) -> None:
    with pytest.raises(DataError, match="looked for dev; found train, val"):
        fitted(images, val_split="dev")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("broken", ["train/cat/02.jpg", "val/dog/01.jpg"])
def test_broken_image_is_named(images: Path, broken: str, workers: int) -> None:
    truncate(images / broken)
    data = fitted(images, num_workers=workers)
    loader = data.train_dataloader() if broken.startswith("train") else data.val_dataloader()
    with pytest.raises(UnreadableImageError, match=f"cannot read .*{broken}: .*--data.on_error skip"):
        list(loader)


def test_broken_images_are_replaced_in_training_and_left_out_of_validation(images: Path) -> None:
    for name in ("train/cat/02.jpg", "val/cat/01.jpg"):
        truncate(images / name)
    data = fitted(images, on_error="skip", batch_size=1)
    names = [name for batch in data.train_dataloader() for name in batch.name]
    assert len(names) == 11
    assert sum(name.endswith("cat/03.jpg") for name in names) == 2  # itself, and for 02
    validated = list(data.val_dataloader())
    assert [len(batch.image) for batch in validated] == [1, 0, 1, 1, 1]
    assert len(data.broken("train")) == len(data.broken("validation")) == 1
    assert "val/cat/01.jpg" in data.broken("validation")[0]


def test_folder_of_broken_images_only_stops_training(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set", {"train/a": 2, "val/a": 1})
    for path in (root / "train" / "a").iterdir():
        truncate(path)
    with pytest.raises(UnreadableImageError, match="in a row"):
        list(fitted(root, on_error="skip").train_dataloader())


def test_prediction_needs_no_classes(tmp_path: Path) -> None:
    Image.new("RGB", (20, 16)).save(tmp_path / "one.png")
    data = module(tmp_path)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch.name == [str(tmp_path / "one.png")]
    assert batch.target.tolist() == [-1]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "one.png", "one.png")
    data = module(tmp_path / "x.tar")
    data.setup("predict")
    (from_tar,) = data.predict_dataloader()
    assert from_tar.name == ["one.png"]
    assert torch.equal(from_tar.image, batch.image)


def test_expected_classes_number_the_images(images: Path) -> None:
    data = module(images)
    data.expect_classes(["bird", "cat", "dog"])
    with pytest.warns(UserWarning, match="no images of class bird"):
        data.setup("validate")
    assert torch.cat([batch.target for batch in data.val_dataloader()]).tolist() == [1, 1, 1, 2, 2]


def test_order_does_not_depend_on_the_workers(images: Path) -> None:
    seen = []
    for workers in (0, 2):
        batches = list(fitted(images, num_workers=workers, auto_augment="rand-m9-mstd0.5-inc1").train_dataloader())
        seen.append([(batch.name, batch.image) for batch in batches])
    for (names, pixels), (other_names, other_pixels) in zip(*seen, strict=True):
        assert names == other_names
        assert torch.equal(pixels, other_pixels)


def test_reading_leaves_the_random_state_alone(images: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    dataset = fitted(images).train_dataloader().dataset
    for draw in TrainSampler(4):
        dataset[draw]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("repeats", [0, 3])
def test_ranks_share_an_epoch_and_epochs_differ(repeats: int) -> None:
    def draw(epoch: int, rank: int) -> list[int]:
        sampler = TrainSampler(512, seed=1, rank=rank, world_size=2, repeats=repeats)
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler) == 256
        return [image for image, _ in sampler]

    if repeats:
        assert len({*draw(0, 0), *draw(0, 1)}) < 512 / 2  # a third of them, three times each
    else:
        assert sorted(draw(0, 0) + draw(0, 1)) == list(range(512))
    assert draw(0, 0) != draw(1, 0)


def test_resumed_epoch_continues_at_the_next_image() -> None:
    whole, resumed = TrainSampler(100, seed=5), TrainSampler(100, seed=5, start=(2, 30))
    whole.set_epoch(2)
    assert list(resumed) == list(whole)[30:]
    assert len(resumed) == 100
    for sampler in (whole, resumed):
        sampler.set_epoch(3)
    assert list(resumed) == list(whole)


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_validation_is_exact_on_any_number_of_ranks(world_size: int) -> None:
    ranks = [[image for image, _ in EvalSampler(10, rank, world_size)] for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1  # or the ranks would wait for each other
    assert sorted(image for rank in ranks for image in rank if image >= 0) == list(range(10))


def test_crop_padding_shifts_the_image_and_mirrors_its_edge(tmp_path: Path) -> None:
    # Columns 0 to 7, each as bright as its number says: the crop must be 8 columns in a row of 2 1 0 0 1 … 7 7 6 5.
    root = tmp_path / "set"
    columns = torch.arange(8, dtype=torch.uint8).repeat(8, 1).numpy()
    for folder in ("train/a", "val/a"):
        (root / folder).mkdir(parents=True)
        Image.fromarray(columns).save(root / folder / "0.png")
    options: dict[str, object] = {"hflip": 0.0, "color_jitter": 0.0, "mean": [0.0], "std": [1 / 255]}
    data = fitted(root, img_size=8, in_chans=1, crop_padding=3, **options)
    loader = data.train_dataloader()
    padded = [2, 1, 0, *range(8), 7, 6, 5]
    expected = {tuple(padded[shift : shift + 8]) for shift in range(7)}
    seen = set()
    for epoch in range(40):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        (batch,) = loader
        assert (batch.image.round() == batch.image[:, :, :1].round()).all()
        seen.add(tuple(batch.image[0, 0, 0].round().int().tolist()))
    assert seen == expected


def test_crop_padding_keeps_the_proportions(images: Path) -> None:
    batch = next(iter(fitted(images, img_size=16, crop_padding=4).train_dataloader()))
    assert batch.image.shape == (2, 3, 16, 16)


def limited(root: Path | None, count: int | None, **options: object) -> list[tuple[str, int]]:
    """Name and class of the images that are trained on."""
    data = fitted(root, limit_per_class=count, batch_size=1, **options)
    batches = list(data.train_dataloader())
    return sorted((batch.name[0], batch.target.item()) for batch in batches)


def test_training_on_some_images_of_each_class(images: Path) -> None:
    chosen = limited(images, 3)
    assert [label for _, label in chosen] == [0, 0, 0, 1, 1, 1]
    assert chosen == limited(images, 3)
    assert set(limited(images, 2)) < set(chosen)
    assert limited(images, 100) == limited(images, None)
    assert len({tuple(limited(images, 3, seed=seed)) for seed in range(8)}) > 1
    data = fitted(images, limit_per_class=1)
    assert data.describe().endswith("2 train, 5 validation images of 2 classes")


def held_out(root: Path, count: int, **options: object) -> tuple[list[str], list[str]]:
    """Names of the images that are trained on, and of those that are validated on."""
    data = fitted(root, holdout_per_class=count, batch_size=1, **options)
    train, val = (
        sorted(name for batch in loader for name in batch.name)
        for loader in (data.train_dataloader(), data.val_dataloader())
    )
    return train, val


def test_validation_on_images_held_out_of_the_training_split(images: Path) -> None:
    train, val = held_out(images, 2)
    assert sorted(train + val) == sorted(map(str, (images / "train").rglob("*.jpg")))
    assert [Path(name).parent.name for name in val] == ["cat", "cat", "dog", "dog"]
    assert held_out(images, 2, seed=5) == (train, val), "the same whatever the seed"
    assert held_out(images, 2, limit_per_class=1)[1] == val
    assert set(held_out(images, 2, limit_per_class=1)[0]) < set(train)
    data = module(images, holdout_per_class=2)
    data.setup("test")
    assert sum(len(batch.image) for batch in data.test_dataloader()) == 5, "testing takes the images of val"


def test_held_out_images_are_not_augmented(images: Path) -> None:
    batches = [list(fitted(images, holdout_per_class=2, hflip=1.0).val_dataloader()) for _ in range(2)]
    plain = fitted(images, no_aug=True, holdout_per_class=2).val_dataloader()
    for batch, again, expected in zip(*batches, plain, strict=True):
        assert torch.equal(batch.image, again.image)
        assert torch.equal(batch.image, expected.image)


def test_too_many_held_out(images: Path) -> None:
    with pytest.raises(DataError, match=r"--data.holdout_per_class 5 leaves no image of class dog to train on"):
        fitted(images, holdout_per_class=5)


def test_a_folder_without_splits_is_divided_by_share(images: Path) -> None:
    data = fitted(images / "train", val_share=0.4, batch_size=1)
    sources = {split: {source.name_of(i) for i in range(len(source))} for split, source in data._sources.items()}
    everything = {str(path) for path in (images / "train").rglob("*.jpg")}
    assert sources["train"] | sources["validation"] == everything
    assert not sources["train"] & sources["validation"]
    per_class = Counter(Path(name).parent.name for name in sources["validation"])
    counts = Counter(Path(name).parent.name for name in everything)
    assert per_class == {name: max(1, round(0.4 * count)) for name, count in counts.items()}
    data.setup("test")
    assert len(data._sources["test"]) == len(sources["validation"])


def test_a_folder_with_splits_holds_out_of_train_alone(images: Path) -> None:
    data = fitted(images, val_share=0.4)
    sources = [source.name_of(i) for source in data._sources.values() for i in range(len(source))]
    assert {Path(name).parents[1].name for name in sources} == {"train"}


def test_holdout_works_in_a_tar_without_splits(images: Path, recwarn: pytest.WarningsRecorder) -> None:
    with tarfile.open(images / "all.tar", "w") as tar:
        tar.add(images / "train", arcname=".")
    train, val = held_out(images / "all.tar", 2)
    assert len(train) == 7
    assert len(val) == 4
    assert not set(train) & set(val)
    assert not [warning for warning in recwarn if "has no splits" in str(warning.message)]


def test_some_images_of_digits_and_tars(images: Path) -> None:
    assert len(limited(None, 2)) == 20
    expected = [(Path(name).name, label) for name, label in limited(images, 2)]
    for split in ("train", "val"):
        with tarfile.open(images / f"{split}.tar", "w") as tar:
            tar.add(images / split, arcname=".")
        shutil.rmtree(images / split)
    assert [(Path(name).name, label) for name, label in limited(images, 2)] == expected


def test_some_images_of_torchvision_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake(FakeData):
        classes = ("a", "b")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            super().__init__(6, (3, 20, 20), num_classes=2)
            if root.endswith("listed"):
                self.targets = [int(self[index][1]) for index in range(6)]

    monkeypatch.setitem(TORCHVISION, "cifar10", replace(TORCHVISION["cifar10"], dataset=Fake))
    (tmp_path / "listed").mkdir()
    assert len(limited(tmp_path / "listed", 1, name="torch/cifar10")) == 2
    assert limited(tmp_path, 1, name="torch/cifar10") == limited(tmp_path / "listed", 1, name="torch/cifar10")


def test_archives_list_the_containers_of_pixels(images: Path, tmp_path: Path) -> None:
    tar_file = tmp_path / "t.tar"
    with tarfile.open(tar_file, "w") as tar:
        tar.add(images / "train", arcname=".")
    tarred, folder = open_place(tar_file), open_place(images / "train")
    assert (tarred.archives(), folder.archives()) == ([tar_file.resolve()], [])
    assert [tarred.read(index)[1] for index in range(len(tarred))] == tarred.targets()
    digits = Digits("validation")
    assert SourceSubset(digits, [0, 1]).archives() == digits.archives() != Digits("train").archives()
    in_memory = SimpleNamespace(data=np.zeros((2, 4, 4, 3), np.uint8), targets=[0, 1])
    assert TorchvisionSource(in_memory, "RGB").archives() == [bytes(2 * 4 * 4 * 3)]
    elsewhere = TorchvisionSource(SimpleNamespace(root=str(tmp_path)), "RGB")
    before = elsewhere.archives()
    (tmp_path / os.fsdecode(b"caf\xe9")).touch()
    assert before != elsewhere.archives() == elsewhere.archives()


def test_contradictions_are_refused() -> None:
    with pytest.raises(DataError, match=r"takes no --data.root"):
        module(Path("x"), name="digits")
    with pytest.raises(DataError, match="must have 3 values"):
        module(mean=[0.5])
    with pytest.raises(DataError, match="unknown data set 'cifar'"):
        fitted(name="cifar")
    with pytest.raises(DataError, match=r"--data.limit_per_class must be at least 1, got 0"):
        module(limit_per_class=0)
    with pytest.raises(DataError, match=r"--data.holdout_per_class 1 takes the place of --data.val_split val"):
        module(holdout_per_class=1, val_split="val")
    with pytest.raises(DataError, match=r"--data.crop_padding 4 .* not with --data.no_aug"):
        module(crop_padding=4, no_aug=True)
