"""Faults of predict and linear: one line that names the thing and the remedy, and no file of rows."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from visionattn.__main__ import dispatch
from visionattn.cli.errors import run

Fails = Callable[..., str]
NAME = "resnet_pico.cifar10"


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Return a function that runs a command of visionattn, checks for one line of error and returns it."""
    monkeypatch.chdir(tmp_path)

    def call(*argv: str | Path, status: int = 1) -> str:
        assert run(dispatch, [*map(str, argv), "--device=cpu", "--num_workers=0"]) == status
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
        return line.removeprefix("error: ")

    return call


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        pytest.param(["gone.jpg"], 1, "no such image or folder: gone.jpg", id="no image"),
        pytest.param(["empty"], 1, "no images under empty", id="no images"),
        pytest.param(["text.jpg"], 1, "not one image could be read: text.jpg: not an image", id="unreadable"),
        pytest.param(["text.jpg", "--on_error=raise"], 1, "or pass --on_error skip", id="raise"),
        pytest.param([], 2, "missing: IMAGES", id="no words"),
        pytest.param(["red.jpg", "--topk=0"], 2, "--topk must be at least 1, got 0", id="topk"),
        pytest.param(["red.jpg", "--batch_size=0"], 1, "--batch_size must be at least 1, got 0", id="batch"),
        pytest.param(["red.jpg", "--threshold=0.3"], 1, "--threshold is for models of several labels", id="threshold"),
        pytest.param(["red.jpg", "--output=p.xlsx"], 1, "the formats are .csv, .json, .parquet", id="format"),
    ],
)
def test_images_or_options_that_predict_cannot_use(
    fails: Fails, tmp_path: Path, colour_folder: Path, argv: list[str], status: int, says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("text")
    (colour_folder / "val" / "red" / "0.jpg").rename(tmp_path / "red.jpg")
    assert says in fails("predict", NAME, *argv, status=status)


def test_unreadable_image_among_others_is_counted_and_has_a_row(
    tmp_path: Path, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = colour_folder / "val" / "red" / "1.jpg"
    broken.write_text("text")
    output = tmp_path / "p.csv"
    argv = ["predict", NAME, str(colour_folder / "val"), "--topk=1", "--num_workers=0", f"--output={output}"]
    assert run(dispatch, argv) == 0
    said = f"unreadable images left out: 1, the first: {broken}: not an image that Pillow knows"
    assert capsys.readouterr().out.splitlines()[-2:] == [said, f"9 rows in {output}"]
    assert f"{broken},,,not an image that Pillow knows" in output.read_text().splitlines()


@pytest.mark.parametrize("name", ["vit_pico_patch4_32", "body"])
def test_model_without_weights_or_classes_predicts_nothing(
    fails: Fails, tmp_path: Path, colour_folder: Path, name: str
) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "body.pth")
    words = [name] if name != "body" else ["body.pth", "--architecture=test_resnet"]
    line = fails("predict", words[0], colour_folder, *words[1:], "--output=p.csv")
    says = "body.pth holds no classifier: visionattn linear trains one on its features, "
    assert line.startswith(says if name == "body" else f"nothing to predict, for the weights of {name} are random: ")
    assert not (tmp_path / "p.csv").exists()


def test_parquet_without_its_package_is_an_error(
    fails: Fails, colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionattn.row_files.find_spec", lambda name: None)
    line = fails("predict", NAME, colour_folder, "--output=p.parquet")
    assert line.endswith('pyarrow, which is not installed: pip install "visionattn[parquet]"')


def test_image_of_other_channels_is_converted(tmp_path: Path, colour_folder: Path) -> None:
    """A model of colour images takes grey ones, and the other way round, as in training."""
    from PIL import Image

    import visionattn

    Image.new("L", (40, 32), 90).save(tmp_path / "grey.png")
    Image.new("RGB", (40, 32), (90, 90, 90)).save(tmp_path / "colour.png")
    for channels in (1, 3):
        loaded = visionattn.load_model(NAME, model_kwargs={"in_chans": channels})
        grey, colour = loaded.predict([tmp_path / "grey.png", tmp_path / "colour.png"])
        assert grey.probabilities == pytest.approx(colour.probabilities)


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        pytest.param(["flat"], 2, "missing: --model NAME, such as nat_pico.cifar10", id="no model"),
        pytest.param(["gone", f"--model={NAME}"], 1, "no such data folder: gone (FOLDER; expected", id="no folder"),
        pytest.param(["flat/red", f"--model={NAME}"], 1, "flat/red has no class folders: ", id="no classes"),
        pytest.param(["one", f"--model={NAME}"], 1, "one has one class, 'red': a folder for each", id="one class"),
        pytest.param(["flat", "--model=vit_pico_patch4_32"], 1, "are random: give a checkpoint", id="random"),
        pytest.param(["flat", f"--model={NAME}", "--head=knn"], 1, "knn has no head to write", id="knn"),
        pytest.param(["flat", f"--model={NAME}", "--head=linaer"], 1, "did you mean linear", id="head"),
        pytest.param(["flat", "--model=gone.json"], 1, "no exported head at gone.json", id="no head"),
        pytest.param(
            ["flat", f"--model={NAME}", "--val_share=2"],
            1,
            "--val_share must be greater than 0 and at most 1",
            id="share",
        ),
    ],
)
def test_folder_or_options_that_linear_cannot_use(
    fails: Fails, tmp_path: Path, colour_folder: Path, argv: list[str], status: int, says: str
) -> None:
    (colour_folder / "train").rename(tmp_path / "flat")
    (tmp_path / "one").mkdir()
    (colour_folder / "val" / "red").rename(tmp_path / "one" / "red")
    assert says in fails("linear", *argv, status=status)
    assert not list(tmp_path.glob("runs/*-linear"))
