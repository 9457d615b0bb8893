"""Faults of the sheets of features and gradients: one line that names the thing and the remedy."""

from pathlib import Path

import pytest

from visionattn.__main__ import dispatch
from visionattn.cli.errors import run

VIT, DCAL = "vit_nano_patch4_32.cifar10", "dcal_vit_nano.cifar10"
NO_CLASSES = ["--random=true", "--model_kwargs={num_classes: 0}"]


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        pytest.param(VIT, ["gradcam", "--class_name=shi"], "no class has this name; give a name or a", id="class"),
        pytest.param(VIT, ["pca", "--layer=9"], "no layer 9; there are 0 to 5, and 'last'", id="layer of pca"),
        pytest.param(VIT, ["gradcam", "--layer=9"], "no layer 9; there are 0 to 5, and 'last'", id="layer of gradcam"),
        pytest.param(VIT, ["gradcam", "--layer=last"], "layer last; choose an earlier one", id="no gradient"),
        pytest.param(DCAL, ["gradcam"], "does not compute its layers one by one", id="hidden layers"),
        pytest.param("nat_pico", ["saliency", *NO_CLASSES], "holds no classifier", id="no classes"),
    ],
)
def test_sheet_that_a_model_does_not_have_is_named(
    tmp_path: Path, colour_folder: Path, capsys: pytest.CaptureFixture[str], model: str, options: list[str], says: str
) -> None:
    output = tmp_path / "sheets"
    argv = ["look", model, str(colour_folder / "val" / "red"), "--output", str(output), "--show", *options]
    assert run(dispatch, argv) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: ")
    assert says in line
    assert not list(output.glob("*.png"))


def test_wrong_class_is_an_error_before_any_sheet(
    tmp_path: Path, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["look", VIT, str(colour_folder / "val" / "red"), "--class_name=shark", f"--output={tmp_path / 'sheets'}"]
    assert run(dispatch, argv) == 1
    assert "--class_name shark: no class has this name" in capsys.readouterr().err
    assert not list((tmp_path / "sheets").iterdir())


def test_kinds_that_are_missing_for_one_reason_share_a_line(
    tmp_path: Path, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((colour_folder / "val" / "red").glob("*.jpg"))
    argv = ["look", "resnet_pico.cifar10", str(image), f"--output={tmp_path}", "--height=48", "--device=cpu"]
    assert run(dispatch, argv) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no ")]
    assert [line.split(":")[0] for line in lines] == ["no attention, rollout, window sheet"]


def test_wrong_layer_leaves_out_one_sheet_of_several(
    tmp_path: Path, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((colour_folder / "val" / "red").glob("*.jpg"))
    argv = ["look", VIT, str(image), "--output", str(tmp_path / "sheets"), "--layer", "last", "--height", "48"]
    assert run(dispatch, argv) == 0
    assert "no gradcam sheet: the score does not depend on the patches of layer last" in capsys.readouterr().out
    assert {"pca.png", "saliency.png"} <= {path.name for path in (tmp_path / "sheets").iterdir()}
