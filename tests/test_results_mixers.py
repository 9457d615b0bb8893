"""results/mixers.py: what its table says of differences, and a run from images to a row."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the script, and let it write to another folder."""
    module = import_module("results.mixers")
    for name, place in {"TABLE": "t.csv", "PAGE": "page.md", "SPEEDS": "speeds.json"}.items():
        monkeypatch.setattr(module, name, tmp_path / place)
    (tmp_path / "page.md").write_text(f"before\n{module.BEGIN}\nold\n{module.END}\nafter\n")
    return module


def rows_of(mixer: str, *scores: float) -> list[dict[str, Any]]:
    return [
        {"mixer": mixer, "model": mixer, "parameters": "7", "seed": i, "test_top1": x} for i, x in enumerate(scores)
    ]


def test_difference_within_twice_the_pooled_deviation_is_none(script: ModuleType) -> None:
    assert script.pooled_deviation([[1.0, 3.0], [2.0, 2.0, 5.0], [9.0]]) == pytest.approx((8 / 3) ** 0.5)
    rows = rows_of("neighborhood", 60, 61, 62) + rows_of("full", 62, 62.9, 63.8) + rows_of("core", 63, 64, 65)
    lines = script.markdown(rows, {"core": {"gmacs": 0.05, "images_per_second": 1234.5}}).splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:]] == [" |", "no difference |", "+3.0 |"]
    assert "| 0.050 | 1,234 |" in lines[-1]
    (line,) = script.markdown(rows_of("neighborhood", 60) + rows_of("full", 70), {}).splitlines()[3:]
    assert line.endswith("| 70.00 | not known from one seed |")


def test_missing_runs_are_trained_and_shown_the_test_images(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for label in range(10):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                Image.effect_noise((32, 32), 60).convert("RGB").save(folder / f"{number}.png")
    (tmp_path / "full.yaml").write_text(
        f"base: {ROOT}/configs/mixers/full.yaml\n"
        "data: {num_workers: 0, holdout_per_class: 1, batch_size: 8}\n"
        "trainer: {max_epochs: 1, limit_train_batches: 1, accelerator: cpu}\n"
        "model: {warmup_epochs: 0, model_kwargs: {depth: 1}}\n"
    )
    monkeypatch.setattr(script, "CONFIGS", tmp_path)
    for _ in range(2):
        options = ["--root", str(tmp_path / "images"), "--runs", str(tmp_path / "runs")]
        assert script.main([*options, "--mixers", "full", "--seeds", "3"]) == 0
    (row,) = script.read_table(script.TABLE)
    assert (row["mixer"], row["seed"], row["epochs"], row["test_images"]) == ("full", "3", "1", "20")
    assert len(list((tmp_path / "runs").glob("*/*"))) == 1, "a run that the table has is not repeated"
    assert "| full |" in script.PAGE.read_text()
