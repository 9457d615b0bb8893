"""Faults of ``visionattn finetune``: images that cannot be learnt from, models without weights, wrong options."""

import shutil
import warnings
from pathlib import Path

import pytest
import timm
import torch

from visionattn.__main__ import dispatch
from visionattn.cli.errors import run

MODEL = "--model=resnet_pico.cifar10"


@pytest.fixture
def photos(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with three class folders of four images; work beside it."""
    monkeypatch.chdir(colour_folder.parent)
    return (colour_folder / "train").rename(colour_folder.parent / "photos")


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]):
    def call(*argv: str, says: str, status: int = 1) -> None:
        ended = run(dispatch, ["finetune", *argv])
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
        assert len(lines) == 1, lines
        assert says in lines[0]
        assert ended == status
        assert not [path for path in Path("runs").rglob("*") if path.is_file()]

    return call


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        pytest.param(["--model=x"], "finetune needs images first: visionattn finetune FOLDER --model", id="images"),
        pytest.param(["photos"], "finetune needs --model NAME, such as nat_pico.cifar10, or --model", id="no model"),
        pytest.param(["photos", "--modle", "x"], "unknown option --modle; did you mean --model?", id="misspelt model"),
        pytest.param(["photos", MODEL, "--epochs=0"], "--epochs must be at least 1, got 0", id="epochs"),
        pytest.param(["photos", MODEL, "--task=mae"], "finetune trains classifiers: visionattn fit has", id="task"),
        pytest.param(["photos", MODEL, "--model.learning_rate=1"], "did you mean --model.lr", id="option"),
        pytest.param(
            ["photos", "--model=dcal_vit_pico"],
            "nothing to fine-tune, for dcal_vit_pico has no published weights: give --checkpoint FILE, or train",
            id="random",
        ),
        pytest.param(
            ["photos", MODEL, "--model.pretrained=false"],
            "nothing to fine-tune, for --model.pretrained is false: give --checkpoint FILE, or train from scratch",
            id="not pretrained",
        ),
    ],
)
@pytest.mark.usefixtures("photos")
def test_wrong_command_line_of_finetune_is_an_error(fails, argv: list[str], says: str) -> None:
    fails(*argv, says=says, status=2)


def test_unknown_model_to_finetune_is_an_error(photos: Path, fails) -> None:
    fails("photos", "--model=nat_pcio", says="unknown model 'nat_pcio': did you mean nat_pico")
    fails("photos", "--model=gone.ckpt", says="gone.ckpt")


def test_file_without_its_model_is_not_finetuned(photos: Path, fails) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), "x.pth")
    says = "x.pth does not say which model it holds: pass --model NAME --checkpoint x.pth"
    fails("photos", "--model=x.pth", says=says, status=2)


def test_missing_folder_to_finetune_on_is_an_error(photos: Path, fails) -> None:
    fails("gone", MODEL, says="no such data folder: gone")


def test_folder_without_class_folders_is_an_error(photos: Path, fails) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fails("photos/red", MODEL, says="the images in photos/red lie in no class folders: make a folder for each")


def test_folder_with_one_class_is_not_finetuned_on(photos: Path, fails) -> None:
    for name in ("blue", "green"):
        shutil.rmtree(photos / name)
    fails("photos", MODEL, "--data.num_workers=0", says="the data have one class, 'red'")


def test_class_with_one_image_cannot_be_divided(photos: Path, fails) -> None:
    for number in (1, 2, 3):
        (photos / "red" / f"{number}.jpg").unlink()
    fails("photos", MODEL, says="--data.val_share 0.2 leaves no image of class red to train on: add images of it")


def test_validation_folder_beside_a_share_stays_for_a_test(colour_folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(colour_folder.parent)
    options = ["--data.val_share=0.25", "--epochs=1", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    assert run(dispatch, ["finetune", str(colour_folder), MODEL, *options]) == 0
    out = capsys.readouterr().out
    assert "9 train, 3 validation images" in out
    (evaluation,) = [line for line in out.splitlines() if line.startswith("evaluate:")]
    assert "--data.val_share" not in evaluation
