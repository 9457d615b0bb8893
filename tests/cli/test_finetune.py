"""``visionattn finetune``: division of a folder, settings from images and model, resuming, Python."""

import csv
import re
import shlex
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import visionattn
from visionattn.__main__ import dispatch
from visionattn.cli.errors import run
from visionattn.cli.finetune import name_run
from visionattn.data import sources

MODEL = "resnet_pico.cifar10"
QUICK = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
RUN = Path(f"runs/photos-{MODEL}/0")

Command = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs a command in a folder with ``photos``, and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    for name in ("ant", "bee"):
        draw(tmp_path / "photos" / name, 10)

    def call(*argv: str) -> str:
        capsys.readouterr()
        status = run(dispatch, [*argv])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    return call


def draw(folder: Path, count: int) -> None:
    rng = np.random.default_rng(len(folder.name))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def configured(command: Command, *argv: str) -> dict:
    """Return the options that a command line of finetune stands for."""
    values: dict = yaml.safe_load(command("finetune", *argv, "--print_config"))
    return values


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as text:
        return list(csv.DictReader(text))


def test_folder_is_divided_and_the_printed_commands_work(command: Command) -> None:
    out = command("finetune", "photos", "--model", MODEL, "--epochs", "1", *QUICK)
    assert out.startswith("validation: 20% of the images of each class, the same every time; split.csv of the run ")
    assert "fine-tuning: 1 epoch of 2 updates, 8 images per update, learning rate 0.0005, warm-up" in out
    assert (
        f"images 32×32, crop 1 (center), bicubic, mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225, as {MODEL}" in out
    )
    divided = [(row["label"], row["split"]) for row in rows(RUN / "split.csv")]
    for name in ("ant", "bee"):
        assert (divided.count((name, "train")), divided.count((name, "validation"))) == (8, 2)
    score = re.search(r"best val top-1 ([\d.]+%)", out)
    (evaluation,) = re.findall(r"^evaluate: +visionattn (.*)$", out, re.MULTILINE)
    assert score is not None
    table = command(*shlex.split(evaluation), "--device=cpu", "--data.num_workers=0")
    assert score[1] in table
    assert re.search(r"\D4\D", table), "the held-out images alone"
    (prediction,) = re.findall(r"^predict: +visionattn (.*) IMAGES$", out, re.MULTILINE)
    assert "photos/bee/0.png" in command(*shlex.split(prediction), "photos/bee", "--device=cpu")


def test_options_that_are_given_win(command: Command) -> None:
    found = configured(command, "photos", "--model", MODEL)
    assert (found["model"]["lr"], found["model"]["layer_decay"], found["model"]["pretrained"]) == (5e-4, 0.75, True)
    assert (found["trainer"]["max_epochs"], found["model"]["warmup_epochs"], found["data"]["batch_size"]) == (50, 5, 8)
    Path("mine.yaml").write_text("trainer:\n  max_epochs: 7\ndata:\n  batch_size: 4\n")
    argv = ["photos", "--model", MODEL, "--config", "mine.yaml", "--model.layer_decay", "null", "--lr", "1e-3"]
    found = configured(command, *argv, "--data.val_share", "0.5")
    assert (found["model"]["lr"], found["model"]["lr_base"], found["model"]["layer_decay"]) == (1e-3, None, None)
    assert (found["trainer"]["max_epochs"], found["data"]["batch_size"], found["data"]["val_share"]) == (7, 4, 0.5)
    assert found["model"]["warmup_epochs"] == pytest.approx(0.7), "follows from the epochs that are given"


@pytest.mark.parametrize(("batch", "rate"), [(8, 5e-4), (32, 5e-4), (64, 1e-3)])
def test_rate_grows_with_the_root_of_a_large_batch(command: Command, batch: int, rate: float) -> None:
    argv = ["--batch_size", str(batch), "--trainer.accumulate_grad_batches", "4" if batch == 64 else "1"]
    assert configured(command, "photos", "--model", MODEL, *argv)["model"]["lr"] == rate


def test_folder_with_a_validation_split_is_not_divided(command: Command) -> None:
    draw(Path("split/train/ant"), 2)
    draw(Path("split/train/bee"), 2)
    assert configured(command, "split", "--model", MODEL)["data"]["val_share"] == 0.2, "train/ alone"
    draw(Path("split/val/ant"), 1)
    draw(Path("split/val/bee"), 1)
    found = configured(command, "split", "--model", MODEL)
    assert found["data"]["val_share"] is None
    assert found["run_name"] == f"split-{MODEL}"


def test_table_of_labels_in_place_of_a_folder(command: Command) -> None:
    files = sorted(Path("photos").rglob("*.png"))
    Path("labels.csv").write_text("path,label\n" + "".join(f"{file},{file.parent.name}\n" for file in files))
    out = command("finetune", "labels.csv", "--model", MODEL, "--epochs", "1", *QUICK)
    assert out.startswith("validation: 20% of the images of each class")
    (evaluation,) = re.findall(r"^evaluate: +visionattn (.*)$", out, re.MULTILINE)
    assert re.search(r"\D4\D", command(*shlex.split(evaluation), "--device=cpu", "--data.num_workers=0"))


def test_resumed_run_keeps_its_settings_and_its_division(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["finetune", "photos", "--model", MODEL, *QUICK]
    command(*argv, "--epochs", "1", "--batch_size", "4")
    out = command(*argv, "--epochs", "2", "--ckpt_path", "last")
    assert f"files in {RUN}" in " ".join(out.split())
    assert yaml.safe_load((RUN / "config-1.yaml").read_text())["data"]["batch_size"] == 4
    draw(Path("photos/ant"), 11)
    assert run(dispatch, [*argv, "--epochs", "3", "--ckpt_path", "last"]) == 1
    assert f"the images have changed since {RUN}/split.csv was written" in capsys.readouterr().err


def test_resumed_run_takes_another_learning_rate_and_keeps_it(command: Command) -> None:
    argv = ["finetune", "photos", "--model", MODEL, *QUICK]
    command(*argv, "--epochs", "1")
    command(*argv, "--epochs", "2", "--ckpt_path", "last", "--lr", "1e-4")
    command(*argv, "--ckpt_path", "last")
    command(*argv, "--ckpt_path", "last", "--model.lr_base", "2e-3")
    configs = [yaml.safe_load((RUN / f"config{number}.yaml").read_text()) for number in ("", "-1", "-2", "-3")]
    rates = [(each["model"]["lr"], each["model"]["lr_base"]) for each in configs]
    assert rates == [(5e-4, None), (1e-4, None), (1e-4, None), (None, 2e-3)]
    assert [each["trainer"]["max_epochs"] for each in configs] == [1, 2, 2, 2]


def test_printed_length_is_that_of_the_run(command: Command) -> None:
    argv = ["--epochs", "1", "--batch_size", "3", "--trainer.accumulate_grad_batches", "2"]
    out = command("finetune", "photos", "--model", MODEL, *argv, *QUICK)
    assert "1 epoch of 3 updates, 6 images per update" in out
    assert "1 epoch, 3 steps" in out


def test_run_has_the_name_of_its_data_set() -> None:
    model = Namespace(name=MODEL)
    for data, name in (
        ({"name": "torch/dtd", "root": "downloads"}, f"torch_dtd-{MODEL}"),
        ({"name": "folder", "root": "some/photos"}, f"photos-{MODEL}"),
        ({"labels": "some/birds.csv", "root": "photos"}, f"birds-{MODEL}"),
    ):
        options = Namespace(data=Namespace(**{"name": None, "root": None, "labels": None} | data), model=model)
        assert name_run(options) == name


def test_checkpoint_is_a_model_to_start_from(command: Command, checkpoint: Path) -> None:
    found = configured(command, "photos", "--model", str(checkpoint))
    assert (found["model"]["name"], found["model"]["pretrained"]) == ("test_resnet", False)
    assert found["model"]["checkpoint_path"] == str(checkpoint)
    given = configured(command, "photos", "--model=test_resnet", f"--checkpoint={checkpoint}")
    assert given["model"] == found["model"]


def test_images_are_listed_once(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Path] = []
    original = sources.list_folder
    monkeypatch.setattr(sources, "list_folder", lambda finder: listed.append(finder.place) or original(finder))
    command("finetune", "photos", "--model", MODEL, "--epochs", "1", *QUICK)
    assert listed == [Path("photos")]


@pytest.mark.usefixtures("command")
def test_function_returns_the_score() -> None:
    options = {"data.num_workers": 0, "trainer.accelerator": "cpu"}
    result = visionattn.finetune("photos", MODEL, options, epochs=1, quiet=True)
    assert (result.metric, result.folder, result.epochs) == ("val_top1", RUN, 1)
    assert result.load().spec.class_names == ["ant", "bee"]
