"""eval.py probe-seg in this process, on small synthetic scenes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionattn.__main__ import dispatch
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main

FAST = ["--device", "cpu", "--data.num_workers", "0", "--data.length", "8", "--data.val_length", "4"]
FAST += ["--training.epochs", "2", "--training.batch_size", "4", "--training.pixels", "64", "--training.lrs", "1e-2"]
VIT = ["--model", "test_vit", "--model_kwargs", json.dumps({"img_size": 32, "patch_size": 8, "depth": 2})]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def probe_seg(*argv: str) -> int:
    return run(main, ["probe-seg", *FAST, *argv])


def test_files_table_sheet_and_predictions_agree(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--output", "new/r.json", "--csv", "r.csv", "--classes", "c.csv"]
    drawn = ["--overlays", "sheets", "--num_examples", "2", "--predictions", "maps"]
    assert probe_seg(*VIT, "--seeds", "2", *files, *drawn) == 0
    content = json.loads(Path("new/r.json").read_text())
    assert {"versions", "hardware", "command", "git_revision", "data", "features", "training"} <= set(content)
    rows = content["results"]
    assert [row["seed"] for row in rows] == [0, 1]
    assert [(model["seed"], model["num_train"], model["num_val"]) for model in content["models"]] == [
        (0, 8, 4),
        (1, 8, 4),
    ]
    # Each seed has its own random weights.
    assert len({model["weights_hash"] for model in content["models"]}) == 2
    with Path("r.csv").open() as file:
        assert [float(row["miou"]) for row in csv.DictReader(file)] == [row["miou"] for row in rows]
    with Path("c.csv").open() as file:
        classes = list(csv.DictReader(file))
    for row in rows:
        own = [float(each["iou"]) for each in classes if each["seed"] == str(row["seed"])]
        assert len(own) == row["num_present"]
        assert np.mean(own) == pytest.approx(row["miou"])
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("│ last ")]
    assert f"{100 * np.mean([row['miou'] for row in rows]):.2f} ±" in line
    with Image.open("sheets/test_vit.png") as sheet:
        # Columns: three images and the legend. Rows: captions, two scenes.
        assert sheet.size == (6 + 3 * (224 + 6) + 230 + 6, 6 + 26 + 2 * (224 + 6))
    maps = sorted(Path("maps/test_vit-1").iterdir())
    assert [path.name for path in maps] == [f"{number:05d}-{number:05d}.png" for number in range(4)]
    with Image.open(maps[0]) as image:
        assert (image.mode, image.size) == ("L", (32, 32))


def test_second_run_reads_the_cache() -> None:
    def written() -> dict[Path, int]:
        files = [path for path in Path("runs/probing").rglob("*") if path.suffix in (".json", ".npy", ".pt")]
        return {path: path.stat().st_mtime_ns for path in files}

    assert probe_seg(*VIT, "--output", "a.json") == 0
    before = written()
    assert len(before) > 4
    assert probe_seg(*VIT, "--output", "b.json") == 0
    assert written() == before
    first, second = (json.loads(Path(name).read_text())["results"] for name in ("a.json", "b.json"))
    assert first == second


def test_control_adds_random_weights(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "vit_nano_patch4_32.cifar10"]
    assert run(dispatch, ["probe-seg", *FAST, *model, "--pretrained", "--control", "random"]) == 0
    printed = capsys.readouterr().out
    assert "vit_nano_patch4_32.cifar10 (pretrained) on synthetic, 8 + 4 images, 1 seed" in printed
    assert "vit_nano_patch4_32.cifar10 (random) on synthetic" in printed
    assert probe_seg(*VIT, "--control", "random") == 2
    assert "--control random is compared with trained weights" in capsys.readouterr().err


def test_val_without_labels_has_no_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, value in (("train", 1), ("val", 255)):
        for number in range(3):
            for folder, grey in (("images", 50 * number), ("labels", value)):
                (tmp_path / "data" / split / folder).mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), grey).save(tmp_path / "data" / split / folder / f"{number}.png")
    data = ["--data.name", "semantic_folder", "--data.root", "data"]
    assert probe_seg(*VIT, *data, "--output", "r.json") == 0
    (row,) = json.loads(Path("r.json").read_text())["results"]
    assert (row["miou"], row["pixel_accuracy"], row["num_present"]) == (None, None, 0)
    assert "–" in capsys.readouterr().out
