"""results/imbalanced.py: from a folder of images to rows of trainings and the table of docs/labels.md."""

import csv
import itertools
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image


@pytest.fixture
def module() -> ModuleType:
    """Import the script."""
    return import_module("results.imbalanced")


@pytest.fixture
def script(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the script small settings, and let it write to another folder."""
    monkeypatch.chdir(tmp_path)
    small = ["--data.num_workers=0", "--trainer.max_epochs=1", "--model.warmup_epochs=0"]
    replaced = {
        "TABLE": tmp_path / "t.csv",
        "PAGE": tmp_path / "page.md",
        "SEEDS": (0, 1),
        "WAYS": {way: module.WAYS[way] for way in ("none", "weights")},
        "LARGEST": 4,
        "RATIO": 2,
        "VALIDATED": 1,
        "RECIPE": [*module.RECIPE, "--model.name=test_resnet", *small],
    }
    for name, value in replaced.items():
        monkeypatch.setattr(module, name, value)
    (tmp_path / "page.md").write_text(f"before\n{module.BEGIN}\nold\n{module.END}\nafter\n")
    for split, count in (("train", 6), ("test", 2)):
        for label in ("a", "b", "c"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.effect_noise((32, 32), 60).convert("RGB").save(folder / f"{number}.png")
    return module


def test_missing_runs_are_trained_and_shown_the_test_images(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["--root", "images"]) == 0
    with (tmp_path / "runs" / "imbalanced.csv").open() as file:
        labels = [(row["split"], row["label"]) for row in csv.DictReader(file)]
    assert [labels.count(("train", name)) for name in "abc"] == [4, 3, 2]
    assert [labels.count(("val", name)) for name in "abc"] == [1, 1, 1]
    rows = script.read_table(script.TABLE)
    assert [(row["balance"], row["seed"], row["test_images"]) for row in rows] == [
        ("none", "0", "6"), ("weights", "0", "6"), ("none", "1", "6"), ("weights", "1", "6")
    ]  # fmt: skip
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("before\n<!-- imbalanced")
    assert page.endswith("<!-- imbalanced ends -->\nafter\n")
    first, second = (float(row["balanced_top1"]) for row in rows if row["balance"] == "weights")
    deviation = abs(first - second) / 2**0.5
    assert f"| `--data.balance=weights` | 2 | {(first + second) / 2:.1f} ± {deviation:.1f} |" in page
    (tmp_path / "images" / "test").rename(tmp_path / "gone")
    assert script.main(["--root", "images"]) == 0, "no run is repeated"
    assert script.read_table(script.TABLE) == rows


def test_training_images_are_about_five_thousand(module: ModuleType) -> None:
    counts = module.count_images(10)
    assert (counts[0], counts[-1], sum(counts)) == (2014, 20, 4998)
    ratios = [larger / smaller for larger, smaller in itertools.pairwise(counts[:6])]
    assert ratios == pytest.approx([100 ** (1 / 9)] * 5, rel=0.01)


def test_page_has_the_table_of_the_runs(module: ModuleType) -> None:
    assert module.markdown(module.read_table(module.TABLE)) in module.PAGE.read_text()
