"""eval.py probe, in this process, on small pictures."""

import json
from pathlib import Path

import pytest
import torch

import visionattn
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main
from visionattn.data import ImageClassificationData


def probe(*argv: str | Path) -> int:
    return run(main, ["probe", "--device", "cpu", "--data.num_workers", "0", *map(str, argv)])


def test_heads_are_trained_told_exported_and_drawn(tmp_path, colour_folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["--model", "vit_pico_patch4_32", "--data.root", colour_folder, "--heads", "linear,knn,ep_8"]
    argv += [
        "--training.epochs",
        "2",
        "--output",
        "r.json",
        "--csv",
        "r.csv",
        "--export",
        "heads",
        "--attention",
        "maps",
    ]
    assert probe(*argv) == 0
    results = {result["head"]: result for result in json.loads(Path("r.json").read_text())["results"]}
    assert list(results) == ["linear", "knn", "ep_8"]
    assert len(Path("r.csv").read_text().splitlines()) == 4
    assert len(list(Path("maps").glob("*.png"))) == 1
    assert "ep_8" in capsys.readouterr().out

    classifier = visionattn.load_probe("heads/vit_pico_patch4_32-ep_8.json")
    cfg = json.loads(Path("r.json").read_text())["models"][0]["preprocessing"]
    data = ImageClassificationData(
        root=str(colour_folder),
        img_size=32,
        mean=list(cfg["mean"]),
        std=list(cfg["std"]),
        crop_pct=cfg["crop_pct"],
        interpolation=cfg["interpolation"],
        num_workers=0,
    )
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        right = (classifier(batch.image).argmax(1) == batch.target).sum().item()
    assert results["ep_8"]["top1"] == pytest.approx(right / len(batch.target))

    assert probe("--leaderboard", "r.json", "--output", "board.md") == 0
    assert "ep_8" in Path("board.md").read_text()
    assert Path("board.png").exists()


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        (["--model", "vit_pico_patch4_32", "--heads", "ep_eight"], 2, "no head is named 'ep_eight'"),
        (["--model", "vit_picco_patch4_32", "--heads", "linear"], 1, "unknown model 'vit_picco_patch4_32'"),
        (["--model", "vit_pico_patch4_32", "--heads", "linear", "--data.root", "gone"], 1, "gone"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, argv, status, says):
    monkeypatch.chdir(tmp_path)
    assert probe(*argv) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1
    assert says in lines[0]
