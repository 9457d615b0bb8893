"""Faults of visionattn look: one line that names the thing and the remedy, and no sheet."""

from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from visionattn.__main__ import dispatch
from visionattn.cli.errors import run

VIT, NAT, CNN = "vit_nano_patch4_32.cifar10", "nat_pico.cifar10", "resnet_pico.cifar10"


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        pytest.param([VIT, "red.jpg", "--blocks=6"], 1, f"--blocks 6: {VIT} has attention in blocks 0 to", id="block"),
        pytest.param([VIT, "red.jpg", "--heads=3"], 1, "--heads 3: blocks.5 has heads 0 to 2", id="head"),
        pytest.param([VIT, "red.jpg", "--point=40,60"], 1, "--point takes x,y in shares of width", id="point"),
        pytest.param([VIT, "red.jpg", "--point=0.5"], 1, "from 0 to 1: 0.5,0.5, not 0.5", id="one number"),
        pytest.param([CNN, "red.jpg", "--show=attention"], 1, f"{CNN} has no attention that can be", id="no attention"),
        pytest.param([NAT, "red.jpg", "--show=rollout"], 1, f"{NAT} attends within windows", id="windows"),
        pytest.param(
            ["iso_nano_ttt", "red.jpg", "--random", "--show=window", '--model_kwargs={"mixer": "ttt"}'],
            1,
            "iso_nano_ttt has no attention that can be recorded (its mixer is ttt); timm's ViT",
            id="mixer",
        ),
        pytest.param([VIT, "red.jpg", "--show=heads"], 2, "--show must be one of attention, rollout", id="kind"),
        pytest.param([VIT, "red.jpg", "--output=a.png"], 2, "a.png holds one sheet: choose it with --show", id="file"),
        pytest.param([VIT, "red.jpg", "--output=red"], 1, "cannot write red: File exists", id="not a folder"),
        pytest.param([VIT, "red.jpg", "--output=b.jpg"], 2, "b.jpg: sheets are .png files; name b.png", id="format"),
        pytest.param([VIT, "red.jpg", "--max_images=0"], 2, "--max_images must be at least 1, got 0", id="number"),
        pytest.param([VIT, "text.jpg"], 1, "not one image could be read: text.jpg: not an image", id="unreadable"),
        pytest.param([VIT, "empty"], 1, "no images under empty", id="no images"),
        pytest.param(["vit_pico_patch4_32", "red.jpg"], 1, "; --random draws them", id="random"),
        pytest.param(["weights.pt", "red.jpg", "--random"], 2, "--random takes the name of a", id="random file"),
        pytest.param(
            ["vit_pico_patch4_32", "red.jpg", "--random", "--weights", "raw"],
            2,
            "--random has no weights to load: leave out --architecture and --weights",
            id="random weights",
        ),
    ],
)
def test_sheets_that_cannot_be_drawn(
    tmp_path: Path,
    colour_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    status: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "red").write_text("text")
    (colour_folder / "val" / "red" / "0.jpg").rename(tmp_path / "red.jpg")
    if not any(word.startswith("--show") for word in argv) and "a.png" not in argv[-1]:
        argv = [*argv, "--show=attention"]
    assert run(dispatch, ["look", *argv, "--device=cpu"]) == status
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert says in line
    assert not [*tmp_path.rglob("*.png")]


def test_model_that_computes_nan_is_named(
    tmp_path: Path, colour_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = timm.create_model(VIT, pretrained=True)
    weights = {name: value * 1e30 if "qkv" in name else value for name, value in model.state_dict().items()}
    save_file(weights, "large.safetensors")
    architecture = f"--architecture={VIT.split('.')[0]}"
    argv = ["look", "large.safetensors", str(colour_folder / "val" / "red"), architecture, "--device=cpu"]
    for kind in ("attention", "saliency"):
        assert run(dispatch, [*argv, f"--show={kind}"]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
        assert line.startswith(f"error: the {kind} sheet of large.safetensors: ")
        assert "finite" in line
    assert not [*tmp_path.rglob("*.png")]


def test_unreadable_image_among_others_is_left_out(
    tmp_path: Path, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = colour_folder / "val" / "red" / "1.jpg"
    broken.write_text("text")
    words = ["look", VIT, str(broken.parent), "--show=attention", f"--output={tmp_path}", "--device=cpu"]
    assert run(dispatch, words) == 0
    assert f"1 unreadable image left out, the first: {broken}: not an image" in capsys.readouterr().out
