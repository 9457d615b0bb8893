"""Held-out images together with splits that the user names."""

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from visionattn.cli import evaluate, train
from visionattn.cli.errors import run
from visionattn.data import DataError, ImageClassificationData

WriteImages = Callable[..., Path]


@pytest.fixture
def folds(tmp_path: Path, write_images: WriteImages) -> Path:
    """Two splits of unusual names, of two classes with five images each."""
    names = (f"{fold}/{kind}/{number}.png" for fold in ("one", "two") for kind in "ab" for number in range(5))
    return write_images(tmp_path / "folds", *names)


def found(data: ImageClassificationData, split: str) -> list[str]:
    return sorted(name for batch in data.loader(split) for name in batch.name)


def module(root: Path, **options: object) -> ImageClassificationData:
    return ImageClassificationData(root=str(root), img_size=8, batch_size=2, num_workers=0, **options)  # type: ignore[arg-type]


def test_held_out_images_are_those_of_a_training_split_by_name(folds: Path) -> None:
    data = module(folds, train_split="one", val_share=0.2)
    data.setup("fit")
    trained, held_out = found(data, "train"), found(data, "validation")
    assert sorted(trained + held_out) == sorted(map(str, folds.glob("one/*/*.png")))
    assert len(held_out) == 2
    assert data.divides_itself


def test_test_split_by_name_takes_no_held_out_images(folds: Path) -> None:
    data = module(folds, train_split="one", test_split="two", val_share=0.2)
    data.setup("test")
    assert found(data, "test") == sorted(map(str, folds.glob("two/*/*.png")))


def test_test_table_takes_no_held_out_images(folds: Path) -> None:
    for fold in ("one", "two"):
        lines = [f"{path.relative_to(folds)},{path.parent.name}" for path in sorted(folds.glob(f"{fold}/*/*.png"))]
        (folds.parent / f"{fold}.csv").write_text("\n".join(["path,label", *lines]))
    tables = {"labels": str(folds.parent / "one.csv"), "val_share": 0.2}
    data = module(folds, test_labels=str(folds.parent / "two.csv"), **tables)
    data.setup("test")
    assert found(data, "test") == sorted(map(str, folds.glob("two/*/*.png")))
    data = module(folds, **tables)
    data.setup("fit")
    data.setup("test")
    assert found(data, "test") == found(data, "validation"), "without a table of test images"


def test_printed_command_evaluates_images_held_out_of_a_split_by_name(
    folds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folds.parent)
    data = "--data.root folds --data.train_split one --data.val_share 0.2 --data.img_size 16 --data.num_workers 0"
    model = "--model.name test_resnet --data.batch_size 4 --trainer.max_epochs 1 --trainer.accelerator cpu"
    assert run(train.main, ["fit", *data.split(), *model.split(), "--run_name", "x"]) == 0
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluate:"))
    assert "--data.root folds/one " in printed
    words = "--data.num_workers 0 --device cpu --output r.json"
    assert run(evaluate.main, [*shlex.split(printed)[3:], *words.split()]) == 0
    assert json.loads(Path("r.json").read_text())["num_images"] == 2
    held_out = module(Path("folds/one"), val_share=0.2)
    held_out.setup("validate")
    rows = csv.DictReader(Path("runs/x/0/split.csv").read_text().splitlines())
    names = [str(Path("folds", row["path"])) for row in rows if row["split"] == "validation"]
    assert found(held_out, "validation") == sorted(names)


def test_split_by_name_of_a_set_without_splits_is_refused(tmp_path: Path) -> None:
    data = ImageClassificationData("torch/eurosat", str(tmp_path), test_split="test", val_share=0.2)
    with pytest.raises(DataError, match=r"torch/eurosat has no splits: leave out --data\.test_split test"):
        data.setup("test")
