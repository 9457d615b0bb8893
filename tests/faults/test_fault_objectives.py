"""Losses, weights and evaluations that do not fit the labels: one line that names the option and the remedy."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from visionattn.training import ModelSpec

Fails = Callable[..., str]
Quick = tuple[str, ...]


@pytest.fixture
def several(colour_folder: Path) -> Path:
    """Write a table of the validation images, with a column for each colour."""
    rows = [("path", "blue", "green", "red")]
    for path in sorted((colour_folder / "val").rglob("*.jpg")):
        rows.append(
            (str(path.relative_to(colour_folder)), *(str(int(path.parent.name == name)) for name in rows[0][1:]))
        )
    with (colour_folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return colour_folder / "labels.csv"


@pytest.fixture
def several_checkpoint(tmp_path: Path, classifier: nn.Module, spec: ModelSpec) -> Path:
    """Write a checkpoint of a classifier of several labels."""
    weights = {f"model.{name}": value for name, value in classifier.state_dict().items()}
    described = replace(spec, multi_label=True).to_dict()
    torch.save(
        {"state_dict": weights, "visionattn": described, "pytorch-lightning_version": "2.6"}, tmp_path / "s.ckpt"
    )
    return tmp_path / "s.ckpt"


@pytest.mark.parametrize(
    ("option", "says"),
    [
        pytest.param("--model.loss=ce", "--model.loss ce is for one label per image, and these", id="softmax"),
        pytest.param("--model.focal_gamma=-1", "--model.focal_gamma must be at least 0, got -1", id="gamma"),
    ],
)
def test_loss_that_does_not_fit_several_labels_is_an_error(
    fails: Fails, quick: Quick, several: Path, option: str, says: str
) -> None:
    fails("fit", *quick, f"--data.labels={several}", "--data.val_share=0.3", option, says=says)
    assert not list(Path("runs").glob("*/*"))


def test_focal_loss_of_mixed_images_is_an_error(fails: Fails, quick: Quick) -> None:
    says = "--model.loss focal wants labels that are not softened: leave out --model.mixup, or choose another loss"
    fails("fit", *quick, "--model.loss=focal", "--model.mixup=0.2", says=says)


def test_class_weights_of_a_task_without_classes_are_an_error(fails: Fails, quick: Quick) -> None:
    model = [word for word in quick if not word.startswith("--model.name")]
    says = "--data.balance weights is for losses of classes, and --task mae has none: leave it out"
    fails("fit", "--task=mae", *model, "--data.balance=weights", says=says)


def test_evaluation_on_another_kind_of_labels_is_an_error(
    fails: Fails, several: Path, several_checkpoint: Path, checkpoint: Path
) -> None:
    one, labels, folder = checkpoint, f"--data.labels={several}", f"--data.root={several.parent}"
    content = torch.load(one, weights_only=True)
    torch.save({**content, "pytorch-lightning_version": "2.6"}, one)
    known = "was trained on images with one label each, those of 'folder' have several: evaluate on images with labels"
    fails("classify", f"--checkpoint={one}", labels, says=known)
    fails("validate", f"--ckpt_path={one}", labels, says=known)
    known = "was trained on images with several labels each, those of 'folder' have one: evaluate on images with labels"
    fails("classify", f"--checkpoint={several_checkpoint}", folder, says=known)
    fails("validate", f"--ckpt_path={several_checkpoint}", folder, says=known)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        pytest.param("--confusion_matrix=m.png", "--confusion_matrix is for one label per image", id="matrix"),
        pytest.param("--threshold=1.5", "--threshold must be at least 0 and at most 1, got 1.5", id="number"),
        pytest.param("--threshold=t.json", "--threshold: cannot read t.json: No such file or directory", id="no file"),
        pytest.param("--threshold=text.json", "--threshold: cannot read text.json: it is not JSON", id="text"),
        pytest.param("--threshold=list.json", "list.json has no numbers from 0 to 1 by class", id="list"),
        pytest.param("--threshold=large.json", "large.json has no numbers from 0 to 1 by class", id="large"),
        pytest.param("--threshold=other.json", "other.json has no threshold of classes green, red", id="other"),
    ],
)
def test_option_that_does_not_fit_several_labels_is_an_error(
    fails: Fails, several: Path, several_checkpoint: Path, option: str, says: str
) -> None:
    texts = {"text": "none", "list": "[0.5]", "large": '{"blue": 2}', "other": '{"blue": 0.5}'}
    for name, text in texts.items():
        Path(f"{name}.json").write_text(text)
    fails("classify", f"--checkpoint={several_checkpoint}", f"--data.labels={several}", option, says=says, status=2)


@pytest.mark.parametrize("option", ["--threshold=0.4", "--save_thresholds=t.json"])
def test_thresholds_of_one_label_are_an_error(fails: Fails, checkpoint: Path, colour_folder: Path, option: str) -> None:
    says = f"{option.partition('=')[0]} is for several labels per image, and {checkpoint} has one: leave it out"
    fails("classify", f"--checkpoint={checkpoint}", f"--data.root={colour_folder}", option, says=says, status=2)
