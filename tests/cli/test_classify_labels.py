"""eval.py classify for several labels per image: figures, thresholds and rows of classes."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn

from visionattn.cli.errors import run
from visionattn.cli.evaluate import main
from visionattn.evaluation import best_thresholds, evaluate_classifier, evaluate_labels, load_model
from visionattn.training import ModelSpec

CLASSES = ("blue", "green", "red")
LABELS = {"a": (1, 0, 1), "b": (0, 0, 1), "c": (0, 0, 0), "d": (1, 0, 0), "e": (1, 0, 1)}
"""Labels of each image; none is green."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write images of noise and a table of their labels; return the table."""
    torch.manual_seed(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for name in LABELS:
        pixels = (255 * torch.rand(32, 32, 3)).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{name}.png")
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", *CLASSES), *((f"{name}.png", *labels) for name, labels in LABELS.items())])
    return folder / "labels.csv"


@pytest.fixture
def checkpoint(tmp_path: Path, classifier: nn.Module, spec: ModelSpec) -> Path:
    """Write a checkpoint of a classifier of several labels, whose logits differ from image to image."""
    weights = {f"model.{name}": value for name, value in classifier.state_dict().items()}
    weights["model.fc.weight"] = 200 * weights["model.fc.weight"]
    described = replace(spec, multi_label=True, dataset="folder")
    torch.save({"state_dict": weights, "visionattn": described.to_dict()}, tmp_path / "labels.ckpt")
    return tmp_path / "labels.ckpt"


@pytest.fixture
def classify(images: Path, checkpoint: Path) -> Callable[..., int]:
    def call(*argv: object) -> int:
        words = ("--device=cpu", f"--checkpoint={checkpoint}", f"--data.labels={images}", "--data.num_workers=0")
        return run(main, ["classify", *words, *map(str, argv)])

    return call


def probabilities(checkpoint: Path, images: Path) -> Tensor:
    loaded = load_model(checkpoint)
    transform = loaded.transform()
    batch = torch.stack([transform(Image.open(images.parent / f"{name}.png")) for name in LABELS])
    with torch.no_grad():
        return loaded.model(batch).sigmoid()


def test_classify_measures_labels(
    classify: Callable[..., int], checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, rows_file, output = tmp_path / "t.json", tmp_path / "c.csv", tmp_path / "r.json"
    assert classify("--output", output, "--per_class", rows_file, "--save_thresholds", saved) == 0
    printed = capsys.readouterr().out
    probability, label = probabilities(checkpoint, images), torch.tensor(list(LABELS.values()))
    occur = [0, 2]
    result = json.loads(output.read_text())
    precisions = [average_precision_score(label[:, k], probability[:, k]) for k in occur]
    assert result["map"] == pytest.approx(sum(precisions) / 2)
    given = probability >= 0.5
    scores = [f1_score(label[:, k], given[:, k], zero_division=0) for k in occur]
    assert result["f1"] == pytest.approx(sum(scores) / 2)
    assert result["f1_micro"] == pytest.approx(f1_score(label, given, average="micro"))
    assert f"{result['map']:.2%}" in printed
    assert "thresholds for the highest F1 on these images: " in printed
    with rows_file.open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert [row["num_images"] for row in rows.values()] == ["3", "0", "3"]
    assert float(rows["red"]["average_precision"]) == pytest.approx(precisions[1])
    assert (rows["green"]["average_precision"], rows["green"]["recall"]) == ("", "")
    thresholds = json.loads(saved.read_text())
    assert thresholds["green"] == 0.5

    assert classify("--output", output, "--threshold", saved) == 0
    again = json.loads(output.read_text())
    best = [
        max(f1_score(label[:, k], probability[:, k] >= cut, zero_division=0) for cut in probability[:, k])
        for k in occur
    ]
    assert again["f1"] == pytest.approx(sum(best) / 2)
    assert again["map"] == result["map"]
    assert classify("--output", output, "--threshold", "0") == 0
    assert json.loads(output.read_text())["f1_micro"] == pytest.approx(2 * 6 / (2 * 6 + 9))


def test_best_thresholds_lie_between_probabilities() -> None:
    probability = torch.tensor([[0.9, 0.2], [0.8, 0.3], [0.4, 0.4], [0.1, 0.6]])
    label = torch.tensor([[True, True], [True, True], [False, True], [False, True]])
    assert best_thresholds(probability, label).tolist() == pytest.approx([0.6, 0.1])


def test_functions_refuse_models_of_the_other_kind(checkpoint: Path) -> None:
    several: Any = load_model(checkpoint)
    one = several._replace(spec=replace(several.spec, multi_label=False))
    with pytest.raises(ValueError, match="has several labels for an image: evaluate_labels evaluates it"):
        evaluate_classifier(several)
    with pytest.raises(ValueError, match="has one label for an image: evaluate_classifier evaluates it"):
        evaluate_labels(one)


def test_images_without_any_label_are_an_error(
    classify: Callable[..., int], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images.write_text("path,blue,green,red\na.png,0,0,0\n")
    assert classify() == 1
    assert "no image of folder has a label: choose a split that has labels" in capsys.readouterr().err
