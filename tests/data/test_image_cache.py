"""Decoded images in memory: the same batches as without, within a bound, shared by loader processes."""

import multiprocessing
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.data import torchvision_copies as copies
from visionattn.data import DataError, ImageClassificationData, UnreadableImageError
from visionattn.data.image_cache import HEADER, TAKEN, WORD, ImageCache, SharedBytes
from visionattn.data.sources import Source
from visionattn.training.callbacks import EpochReport

AUGMENTED = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5, "aug_repeats": 3}
EPOCH = 12


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Noise of many sizes, of two classes: 12 images for training, 4 for validation."""
    random = np.random.default_rng(0)
    for split, count in (("train", EPOCH // 2), ("val", 2)):
        for label in ("cat", "dog"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(256, size=(16 + number, 24 - number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / label / f"{number}.jpg")
    return tmp_path / "set"


def opened(root: Path | None, **options: Any) -> ImageClassificationData:
    defaults = {"root": root and str(root), "batch_size": 4, "img_size": 16, "num_workers": 0, "seed": 0}
    data = ImageClassificationData(**{**defaults, **options})
    data.setup("fit")
    return data


def two_epochs(data: ImageClassificationData, remove: Path | None = None) -> list[tuple[Tensor, Tensor, list[str]]]:
    """Return the batches of two epochs, each with its validation; ``remove`` a folder between them."""
    train, val, found = data.train_dataloader(), data.val_dataloader(), []
    for epoch in range(2):
        train.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found += [batch[:3] for loader in (train, val) for batch in loader]
        if remove is not None:
            shutil.rmtree(remove)
            remove = None
    return found


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2] for a, b in pairs)


@pytest.mark.parametrize("options", [{}, AUGMENTED, {"in_chans": 1, "on_error": "skip"}])
def test_cache_changes_no_bit(images: Path, options: dict[str, Any]) -> None:
    assert same(two_epochs(opened(images, cache=0.01, **options)), two_epochs(opened(images, **options)))


@pytest.mark.parametrize("workers", [0, 2])
def test_cache_is_shared_by_processes_and_reads_no_file_twice(images: Path, workers: int) -> None:
    expected = two_epochs(opened(images))
    data = opened(images, cache=0.01, num_workers=workers)
    assert same(two_epochs(data, remove=images), expected)
    assert data.image_cache is not None
    assert data.image_cache.describe().startswith("cache: 12 of 12 train, 4 of 4 validation images, ")
    assert not data.image_cache.describe().endswith("files")
    loader = data.train_dataloader()
    assert loader.dataset.source is data.image_cache.sources["train"], "a new loader has the same cache"  # type: ignore[attr-defined]


def test_cache_of_arrays_with_several_labels(tmp_path: Path) -> None:
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.full((5, 8, 8 + number), number, np.uint8))
    (tmp_path / "labels.csv").write_text(
        "path,label,split\n0.npy,x|y,train\n1.npy,y,train\n2.npy,x,val\n3.npy,x,train\n"
    )
    options = {"labels": str(tmp_path / "labels.csv"), "multi_label": True, "in_chans": 5, "img_size": 8}
    cached, plain = (opened(None, cache=cache, batch_size=2, **options) for cache in (0.01, 0))
    assert same(two_epochs(cached), two_epochs(plain))


def test_cache_of_a_torchvision_set(tmp_path: Path) -> None:
    copies.usps(tmp_path)
    cached, plain = (opened(tmp_path, name="torch/usps", cache=cache, batch_size=2) for cache in (0.1, 0))
    assert same(two_epochs(cached), two_epochs(plain))


def test_images_beyond_the_bound_are_read_from_files(images: Path) -> None:
    data = opened(images, cache=7e-6)
    assert same(two_epochs(data), two_epochs(opened(images)))
    assert data.image_cache is not None
    kept = data.image_cache.sources["train"].count()
    assert 0 < kept < EPOCH
    assert data.image_cache.memory.size <= 7000
    said = data.image_cache.describe()
    assert said.startswith(f"cache: {kept} of 12 train, ")
    assert said.endswith("of at most 0.0 MB: it is full, others are read from their files")


@pytest.mark.parametrize("size", [0, WORD * HEADER, WORD * (HEADER + 3)])
def test_cache_without_room_keeps_nothing(images: Path, size: int) -> None:
    source: Source = opened(images)._sources["train"]  # type: ignore[assignment]
    cached = ImageCache(size).wrap("train", source)
    for _ in range(2):
        assert cached.read(0)[0] == source.read(0)[0]
    assert cached.count() == 0


def hold(memory: SharedBytes, ready: Any) -> None:
    with memory.locked():
        ready.set()
        signal.pause()


def test_process_killed_while_it_writes_holds_up_no_other(images: Path) -> None:
    source: Source = opened(images)._sources["train"]  # type: ignore[assignment]
    cache = ImageCache(10**5)
    cached, fork = cache.wrap("train", source), multiprocessing.get_context("fork")
    cache.memory.numbers[cached.places] = TAKEN  # it was writing the first image
    ready = fork.Event()
    process = fork.Process(target=hold, args=(cache.memory, ready))
    process.start()
    assert ready.wait(30)
    process.kill()
    process.join()
    assert all(cached.read(index)[0] == source.read(index)[0] for index in range(EPOCH))
    assert cached.count() == EPOCH - 1


def test_broken_images_are_not_kept(images: Path) -> None:
    broken = images / "train" / "cat" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:150])
    data = opened(images, cache=0.01, on_error="skip")
    assert same(two_epochs(data), two_epochs(opened(images, on_error="skip")))
    assert len(data.broken("train")) == 1
    assert data.image_cache is not None
    assert data.image_cache.describe().startswith("cache: 11 of 12 train")
    for _ in range(2):
        with pytest.raises(UnreadableImageError, match=r"3\.jpg"):
            two_epochs(opened(images, cache=0.01))


def test_training_says_how_many_images_are_kept(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, report = opened(images, cache=0.01), EpochReport(per_epoch=False)
    trainer: Any = SimpleNamespace(datamodule=data)
    for _ in range(2):
        two_epochs(data)
        report.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert (
        capsys.readouterr().out.count("cache: 12 of 12 train, 4 of 4 validation images, 0.0 MB of at most 10.0 MB") == 1
    )


def test_evaluation_keeps_no_images(images: Path) -> None:
    data = ImageClassificationData(root=str(images), img_size=16, num_workers=0, cache=1)
    data.setup("validate")
    list(data.val_dataloader())
    assert data.image_cache is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": -1}, "--data.cache must be at least 0, got -1"),
        ({"cache": float("nan")}, "--data.cache must be at least 0, got nan"),
        ({"cache": 1e9}, "--data.cache 1e+09 is more than the memory of this machine, "),
        ({"cache": 2, "name": "wds/x", "root": "x"}, "data set 'wds/x' is read in order: leave out --data.cache 2"),
    ],
)
def test_bounds_that_cannot_be_kept_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as raised:
        ImageClassificationData(**options)
    assert str(raised.value).startswith(message)
