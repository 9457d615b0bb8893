"""A head on a frozen model: a checkpoint for every command that takes one of a classifier."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import visionattn
from visionattn.__main__ import dispatch
from visionattn.cli.errors import run
from visionattn.evaluation import ImageOptions, LoadedModel, evaluate_classifier
from visionattn.probing import FeatureOptions, HeadTraining
from visionattn.probing.frozen import FrozenBackbone
from visionattn.probing.linear import FittedHead, fit_head


@pytest.fixture
def loaded() -> LoadedModel:
    return visionattn.load_model("vit_nano_patch4_32.cifar10")


@pytest.fixture
def flat(colour_folder: Path) -> Path:
    """Return class folders without splits."""
    return Path(shutil.move(colour_folder / "train", colour_folder.parent / "flat"))


def fit(loaded: LoadedModel, folder: Path, cache: Path, head: str = "linear", **options: Any) -> FittedHead:
    training = HeadTraining(epochs=3, batch_size=4, lrs=[1e-2])
    features = FeatureOptions(cache=cache)
    options = {"training": training, "features": features, "device": "cpu", "num_workers": 0, **options}
    return fit_head(loaded, folder, head, **options)


@pytest.mark.parametrize("head", ["linear", "ep_8", "ridge"])
def test_head_is_a_checkpoint_with_the_same_accuracy(
    head: str, loaded: LoadedModel, colour_folder: Path, tmp_path: Path
) -> None:
    fitted = fit(loaded, colour_folder, tmp_path / "cache", head, output=tmp_path / "out")
    assert fitted.file == tmp_path / "out" / "head.json"
    classifier = visionattn.load_model(fitted.file)
    assert classifier.spec.class_names == fitted.class_names == ["blue", "green", "red"]
    assert classifier.origin.weights == "probe"
    options = ImageOptions(root=str(colour_folder), num_workers=0)
    result = evaluate_classifier(classifier, options, device="cpu")
    assert (result.top1, result.num_images) == (fitted.result.top1, 9)
    found = classifier.predict(colour_folder / "val")
    assert isinstance(found, list)
    right = [prediction.classes[0] == Path(prediction.file).parent.name for prediction in found]
    assert sum(right) / 9 == fitted.result.top1


def test_folder_without_splits_is_divided_and_a_second_run_needs_no_model(
    loaded: LoadedModel, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    first = fit(loaded, flat, tmp_path / "cache", announce=said.append)
    assert (first.about["num_train"], first.about["num_val"]) == (9, 3)
    assert said[1] == f"validation: 20% of each class of {flat}, the same images every time"
    monkeypatch.setattr(FrozenBackbone, "forward", lambda *_: pytest.fail("extracted"))
    again = fit(loaded, flat, tmp_path / "cache")
    assert again.result.top1 == first.result.top1
    runs = Path("runs/flat-vit_nano_patch4_32.cifar10-linear")
    assert [first.file, again.file] == [runs / "0" / "head.json", runs / "1" / "head.json"]


def test_command_prints_the_next_one(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--epochs", "2", "--lrs", "0.01", "--device", "cpu", "--num_workers", "0"]
    assert run(dispatch, ["linear", "flat", "--model", "vit_nano_patch4_32.cifar10", *options]) == 0
    *_, score, checkpoint, following = capsys.readouterr().out.splitlines()
    assert score.endswith("of 3 validation images")
    file = checkpoint.removeprefix("checkpoint: ")
    assert following.split() == ["predict:", "visionattn", "predict", file, "IMAGES"]
    assert run(dispatch, ["predict", file, "flat", "--device", "cpu", "--num_workers", "0"]) == 0
    options = ["--data.root", "flat", "--data.val_share", "0.2", "--device", "cpu", "--data.num_workers", "0"]
    assert run(dispatch, ["classify", "--checkpoint", file, *options]) == 0
    assert score.split()[1] in capsys.readouterr().out
