"""Preprocessing, classes and heads that train.py takes from the weights that it starts from."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from visionattn.cli import evaluate, train
from visionattn.cli.errors import run
from visionattn.tasks.start import adopt_preprocessing

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
WEIGHTS = ["--model.name=resnet_pico.cifar10", "--model.pretrained=true"]
QUICK = [
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]
STEP = ["--data.batch_size=10", "--trainer.fast_dev_run=true"]


def knowing(names: list[str] | None) -> str:
    """Return an option that gives the weights these class names."""
    return f"--model.model_kwargs={json.dumps({'pretrained_cfg_overlay': {'label_names': names}})}"


Commands = Callable[..., int]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write one image of noise for each class of CIFAR-10 to ``train`` and ``val``; three classes have other names."""
    rng = np.random.default_rng(0)
    aliases = {"airplane": "plane", "automobile": "car", "ship": "boat"}
    for split in ("train", "val"):
        for name in NAMES:
            folder = tmp_path / "images" / split / aliases.get(name, name)
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / "0.png")
    return tmp_path / "images"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    return lambda *argv: run(train.main if argv[0] != "classify" else evaluate.main, list(map(str, argv)))


MAP = "--data.class_map={plane: airplane, car: automobile, boat: ship}"


def test_predict_uses_the_preprocessing_of_the_weights(command: Commands, images: Path) -> None:
    root = images / "val" / "plane"
    assert command("predict", *QUICK, *WEIGHTS, knowing(NAMES), f"--data.root={root}", "--output=p.json") == 0
    (found,) = json.loads(Path("p.json").read_text())
    model = timm.create_model("resnet_pico.cifar10", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))
    with Image.open(root / "0.png") as image, torch.no_grad():
        share, best = model(transform(image)[None]).softmax(-1)[0].max(-1)  # type: ignore[operator, index]
    assert found["file"] == str(root / "0.png")
    assert found["class"] == NAMES[int(best)]
    assert found["probability"] == pytest.approx(float(share), abs=1e-5)


def test_fit_takes_preprocessing_from_the_weights(
    command: Commands, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    given = ["--data.crop_pct=0.875", f"--data.root={images}", MAP]  # as it is from scratch, but given
    assert (
        command("fit", *QUICK, *WEIGHTS, knowing(NAMES), "--run_name=x", "--data.batch_size=10", *limits, *given) == 0
    )
    out = capsys.readouterr().out
    assert out.startswith("images 32×32, crop 0.875 (center), bicubic, mean ")
    assert "as resnet_pico.cifar10 (pretrained) wants them, except for crop_pct\n" in out
    data = yaml.safe_load(Path("runs/x/0/config.yaml").read_text())["data"]
    wanted = resolve_model_data_config(timm.create_model("resnet_pico.cifar10"))
    assert (data["img_size"], data["crop_pct"], data["mean"]) == (32, 0.875, list(wanted["mean"]))
    # What the summary recommends works.
    recommended = next(line for line in out.splitlines() if line.startswith("evaluate:"))
    assert """--data.class_map '{"plane": "airplane", "car": "automobile", "boat": "ship"}'""" in recommended


def test_warning_for_grey_images_recommends_a_mean_that_agrees(
    command: Commands, images: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A run with the recommended mean has no warning."""
    options = ["fit", *QUICK, *WEIGHTS, *STEP, f"--data.root={images}", "--data.in_chans=1"]
    assert command(*options, "--data.mean=[0.2]") == 0
    (advice,) = [str(one.message) for one in recwarn if "was pretrained with" in str(one.message)]
    option, _, value = advice.split(": ")[-1].removesuffix(" makes them agree").partition(" ")
    recwarn.clear()
    assert command(*options, f"{option}={value.strip(chr(39))}") == 0
    assert not [str(one.message) for one in recwarn if "was pretrained with" in str(one.message)]


@pytest.mark.parametrize("name", ["predict", "validate", "test"])
def test_random_weights_are_not_evaluated(command: Commands, images: Path, capsys, name: str) -> None:
    assert command(name, *QUICK, f"--data.root={images}") == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: nothing to {name}, for the weights of nat_pico are random: give --ckpt_path FILE, "
    )
    assert not Path("predictions.csv").exists()


def test_weights_without_a_decoder_are_not_evaluated(command: Commands, capsys) -> None:
    assert command("validate", *QUICK, *WEIGHTS, "--task=mae") == 2
    assert "nothing to validate: give --ckpt_path FILE, a checkpoint of --task mae" in capsys.readouterr().err


def test_head_of_another_width_is_not_evaluated(command: Commands, colour_folder: Path, capsys) -> None:
    options = ["validate", *QUICK, *WEIGHTS, knowing(None), f"--data.root={colour_folder}"]
    assert command(*options) == 1
    assert "has 3 classes, the head of resnet_pico.cifar10 has 10: " in capsys.readouterr().err
    assert command(*options, "--model.num_classes=3") == 2
    assert "--model.num_classes 3: the weights of resnet_pico.cifar10 (pretrained) have 10 outputs" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["validate", "classify"])
def test_classes_are_matched_by_name_and_never_by_order(
    command: Commands, images: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    options = [name, "--data.num_workers=0", f"--data.root={images}"]
    if name == "validate":
        options += [*QUICK[1:], *WEIGHTS, knowing(NAMES)]
    else:
        named = knowing(NAMES).replace("--model.", "--")
        options += ["--device=cpu", "--model=resnet_pico.cifar10", "--pretrained", named]
    assert command(*options) == 1
    said = "has classes boat, car, plane, which the 10 classes trained on (airplane, automobile, ship) do not include"
    assert said in capsys.readouterr().err
    assert command(*options, MAP) == 0


def test_initial_checkpoint_matches_classes_by_name(
    command: Commands, checkpoint: Path, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (colour_folder / "val" / "blue").rename(colour_folder / "val" / "sky")
    options = ["validate", *QUICK, f"--data.root={colour_folder}"]
    options += ["--model.name=test_resnet", f"--model.checkpoint_path={checkpoint}"]
    assert command(*options) == 1
    assert "has class sky, which the 3 classes trained on (blue) do not include" in capsys.readouterr().err
    assert command(*options, "--data.class_map={sky: blue}") == 0


def test_head_for_other_classes_is_warned_of(command: Commands, images: Path) -> None:
    options = ["fit", *QUICK, *STEP, *WEIGHTS, knowing(NAMES), f"--data.root={images}"]
    with pytest.warns(UserWarning, match="starts with a head for classes airplane, automobile, bird, …; the data have"):
        assert command(*options) == 0


def test_head_for_other_classes_altogether_is_replaced(command: Commands, images: Path, tmp_path: Path) -> None:
    """Its weights would begin as certain and wrong answers. A head for the same classes stays."""
    given = timm.create_model("resnet_pico.cifar10", pretrained=True).get_classifier().weight
    few = ["fit", *QUICK, *WEIGHTS, knowing(NAMES), "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    few += ["--model.lr=0", "--data.batch_size=10", "--trainer.limit_val_batches=1"]
    assert command(*few, f"--data.root={images}", MAP, "--run_name=same") == 0
    for split in ("train", "val"):
        for number, folder in enumerate(sorted((images / split).iterdir())):
            folder.rename(folder.with_name(f"n{number}"))
    assert command(*few, f"--data.root={images}", "--run_name=other") == 0
    same, other = (
        torch.load(f"runs/{name}/0/checkpoints/last.ckpt", weights_only=True)["state_dict"]["model.fc.weight"]
        for name in ("same", "other")
    )
    torch.testing.assert_close(same, given.detach())
    assert not torch.isclose(other, given).any(dim=1).all()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["predict", "--output=p.xlsx"], "--output p.xlsx: the formats are .csv, .json, .parquet"),
        (["classify", "--output=r.csv"], "r.csv would hold JSON: name it r.json"),
        (["classify", "--per_class=r.json"], "r.json would hold CSV: name it r.csv"),
    ],
)
def test_output_file_has_the_format_of_its_suffix(command: Commands, capsys, argv, says: str) -> None:
    assert command(*argv) == 1
    assert capsys.readouterr().err == f"error: {says}\n"


def test_file_without_a_head_is_not_evaluated(command: Commands, colour_folder: Path, capsys, monkeypatch) -> None:
    """Every command that loads it refuses it."""
    body = timm.create_model("test_resnet", num_classes=0)
    torch.save(timm.create_model("test_resnet").state_dict(), "body.pth")
    monkeypatch.setattr("visionattn.tasks.base.load_plain", lambda *args, **kwargs: body)
    options = ["validate", *QUICK, "--model.name=test_resnet", "--model.checkpoint_path=body.pth"]
    named = "--data.class_map={blue: 0, green: 1, red: 2}"
    assert command(*options, f"--data.root={colour_folder}", "--data.img_size=32", named) == 1
    assert (
        capsys.readouterr().err == "error: body.pth has no weights for the head, fc.weight: train.py fit trains one\n"
    )


def test_images_need_not_be_square_but_scenes_do() -> None:
    wanted = {"input_size": (3, 64, 32)}
    data: dict[str, object] = {"img_size": None, "in_chans": None}
    adopt_preprocessing(data, wanted, {"input_size"})
    assert data == {"img_size": [64, 32], "in_chans": 3}
    adopt_preprocessing(given := {"img_size": 48}, wanted, {"input_size"})
    assert given == {"img_size": 48}
    with pytest.raises(ValueError, match=r"want 64×32 images, not square ones: choose --data\.image_size N"):
        adopt_preprocessing({"image_size": None}, wanted, {"input_size"})
