"""Every command prepares images as the weights say: a ViT with statistics, crop and interpolation of its own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import yaml
from timm.models import save_for_hf

from visionattn.__main__ import dispatch
from visionattn.cli.errors import run

MODEL = "local-dir:odd"
LINE = "images 48×48, crop 0.9 (center), bilinear, mean 0.5, 0.4, 0.3, std 0.6, 0.5, 0.4, as local-dir:odd"
WANTED = {"mean": [0.5, 0.4, 0.3], "std": [0.6, 0.5, 0.4], "interpolation": "bilinear"}

LOADERS = ["--data.num_workers=0"]
TRAINING = ["fit", f"--model.name={MODEL}", "--model.pretrained=true", "--trainer.accelerator=cpu", *LOADERS]
STEP = ["--trainer.limit_train_batches=1", "--trainer.max_epochs=1", "--data.batch_size=4", "--run_name=x"]
EVALUATION = [f"--model={MODEL}", "--pretrained", "--device=cpu", *LOADERS, "--output=r.json"]

Printed = Callable[..., str]


@pytest.fixture
def printed(colour_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Return a function that runs a command beside ``colours`` and the weights ``odd``, and returns what it prints."""
    monkeypatch.chdir(colour_folder.parent)
    model = timm.create_model("test_vit", img_size=48, num_classes=3)
    odd = WANTED | {"input_size": (3, 48, 48), "crop_pct": 0.9, "crop_mode": "center"}
    about = {"num_classes": 3, "label_names": ["blue", "green", "red"]}
    save_for_hf(model, "odd", about, model_args={"img_size": 48}, data_config=odd, safe_serialization=True)

    def call(*argv: str) -> str:
        capsys.readouterr()
        status = run(dispatch, [*argv])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    return call


@pytest.mark.parametrize("command", ["validate", "test"])
def test_training_command_prepares_images_as_the_weights_say(printed: Printed, command: str) -> None:
    argv = [command, *TRAINING[1:], "--data.root=colours"]
    assert printed(*argv).startswith(f"{LINE} (pretrained) wants them\n")
    given = printed(*argv, "--data.crop_pct=0.8", "--data.mean=[0.5,0.5,0.5]")
    assert given.startswith("images 48×48, crop 0.8 (center), bilinear, mean 0.5, 0.5, 0.5, std 0.6, 0.5, 0.4, as ")
    assert "wants them, except for mean, crop_pct\n" in given


@pytest.mark.parametrize(
    "argv", [[*TRAINING, *STEP, "--data.root=colours"], ["finetune", "colours", f"--model={MODEL}", *STEP, *LOADERS]]
)
def test_training_prepares_images_as_the_weights_say(printed: Printed, argv: list[str]) -> None:
    line = f"{LINE} (pretrained) wants them, except for crop_pct\n".replace("crop 0.9", "crop 0.8")
    assert line in printed(*argv, "--data.crop_pct=0.8")
    wanted = WANTED | {"img_size": 48, "crop_pct": 0.8}
    found = yaml.safe_load(Path("runs/x/0/config.yaml").read_text())["data"]
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("argv", "crop"),
    [
        pytest.param(["classify", "--data.root=colours"], 0.9, id="classify"),
        pytest.param(["probe", "--data.root=colours", "--heads=knn"], 0.9, id="probe"),
        pytest.param(
            ["binding", "--data.name=synthetic", "--data.limit=2", "--seeds=1", "--training.epochs=1"],
            1.0,  # all patches are seen
            id="binding",
        ),
    ],
)
def test_evaluation_prepares_images_as_the_weights_say(printed: Printed, argv: list[str], crop: float) -> None:
    line = f"{LINE} wants them" + (", except for crop_pct" if crop != 0.9 else "")
    assert line.replace("crop 0.9", f"crop {crop:g}") in printed(*argv, *EVALUATION)
    results = json.loads(Path("r.json").read_text())
    found = results.get("models", [results])[0]["preprocessing"]
    assert {name: found[name] for name in WANTED} == WANTED


def test_export_says_how_the_weights_want_images(printed: Printed) -> None:
    printed("export", "hub", f"--model={MODEL}", "--pretrained", "--output=hub")
    found = json.loads(Path("hub/config.json").read_text())["pretrained_cfg"]
    assert {name: found[name] for name in (*WANTED, "crop_pct")} == WANTED | {"crop_pct": 0.9}
