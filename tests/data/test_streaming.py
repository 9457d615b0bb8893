"""Shards of WebDataset and data sets of Hugging Face, written here and read through timm; nothing is fetched."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from visionattn.data import Batch, DataError, ImageClassificationData, streams
from visionattn.tasks.classification import ClassificationTask

webdataset = pytest.importorskip("webdataset")
TRAINING, VALIDATION = (5, 5, 5, 5), (3, 4, 4)  # images in each shard


def image(number: int) -> Image.Image:
    """Tells its number by its colour, which the transforms of validation leave as it is."""
    return Image.new("RGB", (20, 16), (number, number, number))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three classes, and a description of the splits."""
    info = {}
    for split, lengths in (("train", TRAINING), ("validation", VALIDATION)):
        names = [f"{split}-{number:04d}.tar" for number in range(len(lengths))]
        total = 0
        for name, length in zip(names, lengths, strict=True):
            with webdataset.TarWriter(str(tmp_path / name)) as tar:
                for number in range(total, total + length):
                    content = io.BytesIO()
                    image(number).save(content, "PNG")
                    tar.write({"__key__": f"{number:04d}", "png": content.getvalue(), "cls": str(number % 3).encode()})
            total += length
        info[split] = {"name": split, "num_samples": total, "filenames": names, "shard_lengths": list(lengths)}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": info}))
    return tmp_path


class OneOf(ImageClassificationData):
    """The data as one process of several has it.

    Args:
        of: rank, and number of processes.
        **options: as ever.
    """

    def __init__(self, of: tuple[int, int] = (0, 1), **options: Any) -> None:
        defaults = {
            "batch_size": 4,
            "img_size": 16,
            "num_workers": 0,
            "seed": 0,
            "mean": [0.0] * 3,
            "std": [1 / 255] * 3,
        }
        super().__init__(**{**defaults, "no_aug": True, **options})
        self.of = of
        self.setup("fit")

    @property
    def shard(self) -> tuple[int, int]:
        return self.of


def opened(root: Path, **options: Any) -> OneOf:
    return OneOf(**{"name": "wds/images", "root": str(root), "num_classes": 3} | options)


def numbers(batches: list[Batch]) -> list[int]:
    """Return the numbers of the images."""
    return [int(value) for batch in batches for value in batch.image[:, 0, 0, 0].round()]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_images_are_evaluated_once(shards: Path, world: int, workers: int) -> None:
    processes = [list(opened(shards, of=(rank, world), num_workers=workers).val_dataloader()) for rank in range(world)]
    assert len({len(batches) for batches in processes}) == 1  # or they would wait for each other
    assert sorted(numbers([batch for batches in processes for batch in batches])) == list(range(sum(VALIDATION)))
    for batch in processes[0]:
        assert batch.target.tolist() == [number % 3 for number in numbers([batch])]


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 2)])
def test_processes_and_workers_train_on_shards_of_their_own(shards: Path, world: int, workers: int) -> None:
    seen = []
    for rank in range(world):
        loader = opened(shards, of=(rank, world), num_workers=workers).train_dataloader()
        batches = list(loader)
        assert [len(batch.image) for batch in batches] == [4] * len(loader)
        seen.append(set(numbers(batches)))
    assert set.union(*seen) == set(range(sum(TRAINING)))
    assert sum(map(len, seen)) == sum(TRAINING)


def test_epochs_differ_and_a_resumed_one_is_entered(shards: Path) -> None:
    data, second = opened(shards), opened(shards)
    loader = data.train_dataloader()
    data.set_epoch(2)
    third_epoch = numbers(list(loader))
    second.load_state_dict({"epoch": 2, "batches": 3, "batch_size": 4})
    with pytest.warns(UserWarning, match="what is left of epoch 3 after 3 batches draws on its images from the first"):
        assert numbers(list(second.train_dataloader())) == third_epoch
    assert sorted(third_epoch) == list(range(sum(TRAINING)))
    data.set_epoch(3)
    assert numbers(list(loader)) != third_epoch


def test_workers_without_a_shard_are_not_begun(shards: Path) -> None:
    with pytest.warns(UserWarning, match="has 4 shards for 2 processes: 2 loader workers each, not 8"):
        assert opened(shards, of=(0, 2), num_workers=8).train_dataloader().num_workers == 2
    with pytest.raises(DataError, match="4 shards to train on, too few for 5 processes"):
        opened(shards, of=(0, 5)).train_dataloader()


def test_training_epoch_of_a_stream(shards: Path) -> None:
    data = ImageClassificationData(
        name="wds/images", root=str(shards), num_classes=3, batch_size=4, img_size=32, num_workers=2
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(ClassificationTask("test_resnet"), datamodule=data)
    assert data.describe() == "wds/images: 20 train, 11 validation images of 3 classes"
    assert trainer.global_step == 6  # of two workers, each has ten images, in whole batches
    correct = trainer.callback_metrics["val_top1"].item() * sum(VALIDATION)
    assert round(correct) == pytest.approx(correct, abs=1e-4)


def test_shards_can_be_named_and_counted(shards: Path) -> None:
    (shards / "_info.json").unlink()
    data = opened(shards, train_split="train-{0000..0001}.tar|10", val_split="validation-{0000..0002}.tar")
    assert data.describe() == "wds/images: 10 train, any number of validation images of 3 classes"
    assert set(numbers(list(data.train_dataloader()))) == set(range(10))
    assert numbers(list(data.val_dataloader())) == list(range(sum(VALIDATION)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, "--data.name wds/images needs --data.root FOLDER"),
        ({"train_split": "trein"}, r"split 'trein': .*; --data.train_split names another split, one of the _info.json"),
        ({"train_split": "train-{0000..0001}.tar"}, r"num_samples not specified.*'train-{0000..0099}.tar\|100000'"),
        (
            {"train_split": "train-{0000..0009}.tar|50"},
            "6 of 10 shards are not in --data.root .*, first train-0004.tar",
        ),
        ({"limit_per_class": 2}, "is read in order: leave out --data.limit_per_class"),
        ({"holdout_per_class": 2}, "is read in order: leave out --data.holdout_per_class"),
        ({"balance": "sampler"}, "is read in order: leave out --data.balance"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_missing_shards_are_named(shards: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        OneOf(**{"name": "wds/images", "root": str(shards), "num_classes": 3} | options)


def test_classes_that_shards_do_not_name_are_asked_for(shards: Path) -> None:
    with pytest.raises(DataError, match=r"does not say its classes: pass --data.num_classes N"):
        _ = opened(shards, num_classes=None).class_names


@pytest.mark.parametrize(
    ("name", "package"), [("wds/x", "webdataset"), ("hfds/x", "datasets"), ("hfids/x", "datasets")]
)
def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.setattr(streams, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=rf"{name} needs {package}.*pip install \"visionattn\[streaming\]\""):
        OneOf(name=name, root="anywhere")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of class folders, which Hugging Face's library reads as it is."""
    for split, count in (("train", 9), ("test", 5)):
        for number in range(count):
            path = tmp_path / "set" / split / "abc"[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image(number).save(path)
    return tmp_path / "set"


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
def test_hugging_face(folder: Path, tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    # A stream's length is known of what is prepared, as it is of data sets that say it.
    options = {"download": kind == "hfids", "val_split": "test", "root": str(tmp_path / "cache")}
    data = OneOf(name=f"{kind}/{folder}", **options)
    assert data.class_names == ["a", "b", "c"]
    batches = list(data.val_dataloader())
    assert sorted(numbers(batches)) == list(range(5))
    assert all(batch.target.tolist() == [number % 3 for number in numbers([batch])] for batch in batches)
    if kind == "hfds":
        assert set(numbers(list(data.train_dataloader()))) < set(range(9))
    else:
        assert sum(len(batch.image) for batch in data.train_dataloader()) == 12  # in whole batches
        halves = [list(OneOf(of=(rank, 2), name=f"{kind}/{folder}", **options).val_dataloader()) for rank in (0, 1)]
        assert sorted(numbers(halves[0] + halves[1])) == list(range(5))
    assert torch.is_tensor(batches[0].image)


UNFORKED = """
import multiprocessing, sys
from visionattn.data import ImageClassificationData
if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    options = {"num_classes": 3, "batch_size": 4, "img_size": 16, "num_workers": 1}
    data = ImageClassificationData(name="wds/images", root=sys.argv[1], **options)
    data.setup("fit")
    print(*(sum(len(batch.image) for batch in loader) for loader in (data.train_dataloader(), data.val_dataloader())))
"""


@pytest.mark.slow
def test_shards_are_read_in_an_unforked_process(shards: Path) -> None:
    script = shards / "script.py"
    script.write_text(UNFORKED)
    done = subprocess.run([sys.executable, script, shards], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.split() == ["20", "11"]
