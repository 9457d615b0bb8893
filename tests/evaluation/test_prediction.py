"""Predictions: equal to a plain loop and to the other commands, with unreadable images in their places."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

import visionattn
from visionattn.__main__ import dispatch
from visionattn.cli.errors import run
from visionattn.data import UnreadableImageError
from visionattn.errors import UserError
from visionattn.evaluation import ImageOptions, Prediction, evaluate_classifier, predict
from visionattn.evaluation.prediction import name_classes
from visionattn.evaluation.source import LoadedModel, Origin
from visionattn.training import ModelSpec, create_model

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cut(path: Path) -> Path:
    """Leave the first bytes of a file only."""
    path.write_bytes(path.read_bytes()[:200])
    return path


def labelling(bias: list[float], **changes: Any) -> LoadedModel:
    """Return a model of three classes whose logits are those of the bias, whatever the image."""
    model: Any = create_model("test_resnet", num_classes=3).eval()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor(bias))
    config = resolve_model_data_config(model) | {"input_size": (3, 32, 32)}
    spec = ModelSpec("test_resnet", {}, 3, ["a", "b", "c"], config, "folder", **changes)
    return LoadedModel(model, spec, Origin("x.ckpt", "raw"))


def test_packaged_weights_predict_as_timm_does(colour_folder: Path) -> None:
    model = timm.create_model("resnet_pico.cifar10", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))
    files = [str(path) for path in sorted((colour_folder / "val").rglob("*.jpg"))]
    with torch.no_grad():
        images = torch.stack([transform(Image.open(file)) for file in files])
        expected = model(images).softmax(-1).topk(3)  # type: ignore[operator]
    found = visionattn.load_model("resnet_pico.cifar10").predict(colour_folder / "val", topk=3, batch_size=4)
    assert [prediction.file for prediction in found] == files
    for prediction, values, indices in zip(found, expected.values, expected.indices, strict=True):
        assert prediction.classes == [NAMES[index] for index in indices]
        assert prediction.probabilities == pytest.approx(values.tolist(), abs=1e-5)


def test_command_agrees_with_train_predict_and_classify(
    checkpoint: Path, colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = str(colour_folder / "val")
    weights = ["--model.name=test_resnet", f"--model.checkpoint_path={checkpoint}"]
    options = ["--trainer.accelerator=cpu", "--data.num_workers=0", "--output=train.csv"]
    assert run(dispatch, ["train", "predict", *weights, f"--data.root={root}", *options]) == 0
    options = ["--topk", "1", "--device", "cpu", "--num_workers", "0", "--batch_size", "2", "--output", "p.csv"]
    assert run(dispatch, ["predict", str(checkpoint), root, *options]) == 0
    one, other = (list(csv.DictReader((tmp_path / name).open())) for name in ("train.csv", "p.csv"))
    assert [row | {"error": ""} for row in one] == other
    right = sum(Path(row["file"]).parent.name == row["class"] for row in other)
    data = ImageOptions(root=str(colour_folder), num_workers=0)
    assert evaluate_classifier(visionattn.load_model(checkpoint), data, device="cpu").top1 == right / len(other)


def test_one_image_gives_one_prediction_and_several_a_list(checkpoint: Path, colour_folder: Path) -> None:
    loaded = visionattn.load_model(checkpoint)
    file = colour_folder / "val" / "red" / "0.jpg"
    one = loaded.predict(file, topk=2)
    assert isinstance(one, Prediction)
    assert len(one.classes) == 2
    image = Image.open(file)
    assert loaded.predict(image).probabilities[:2] == pytest.approx(one.probabilities)
    assert loaded.predict(str(file), topk=2) == one
    assert loaded.predict([file], topk=2) == [one]
    assert [found.file for found in loaded.predict([image, image])] == ["0", "1"]
    assert len(loaded.predict(colour_folder / "val" / "red")) == 3  # type: ignore[arg-type]
    assert len(loaded.predict(file, topk=99).classes) == 3  # type: ignore[union-attr]


def test_unreadable_image_has_its_place_and_a_reason(checkpoint: Path, colour_folder: Path) -> None:
    files = sorted((colour_folder / "val").rglob("*.jpg"))
    broken = {cut(files[2]), cut(files[3]), cut(files[8])}
    loaded = visionattn.load_model(checkpoint)
    found = loaded.predict(files, batch_size=3, on_error="skip")
    assert [prediction.file for prediction in found] == [str(file) for file in files]
    assert {Path(prediction.file) for prediction in found if prediction.error} == broken
    assert {prediction.error for prediction in found} == {None, "Truncated File Read"}
    assert all(len(prediction.classes) == (0 if prediction.error else 3) for prediction in found)
    with pytest.raises(UnreadableImageError, match=r"cannot read .*on_error skip"):
        loaded.predict(files)
    with pytest.raises(ValueError, match="not one image could be read"):
        loaded.predict(sorted(broken), on_error="skip")


def test_labels_are_the_classes_above_their_threshold(colour_folder: Path, tmp_path: Path) -> None:
    file = colour_folder / "val" / "red" / "0.jpg"
    loaded = labelling([-3.0, 0.1, 2.0], multi_label=True)
    found = loaded.predict(file, topk=2)
    assert isinstance(found, Prediction)
    assert found.labels == ["b", "c"]
    assert found.classes == ["c", "b"]
    assert found.probabilities == pytest.approx(torch.tensor([2.0, 0.1]).sigmoid().tolist())
    assert found.to_row()["labels"] == "b;c"
    thresholds = tmp_path / "t.json"
    thresholds.write_text(json.dumps({"a": 0.01, "b": 0.9, "c": 0.9}))
    for given, labels in ((0.99, []), (0.6, ["c"]), (thresholds, ["a"]), (str(thresholds), ["a"])):
        assert loaded.predict(file, threshold=given).labels == labels  # type: ignore[union-attr]
    with pytest.raises(UserError, match="--threshold is for models of several labels"):
        labelling([0.0, 0.0, 1.0]).predict(file, threshold=0.3)


def test_classes_without_names_are_those_of_imagenet_or_numbers() -> None:
    loaded = labelling([0.0, 0.0, 1.0])
    assert name_classes(loaded) == (["a", "b", "c"], "")
    unnamed = replace(loaded.spec, class_names=[], dataset="")
    names, said = name_classes(loaded._replace(spec=unnamed))
    assert names == ["0", "1", "2"]
    assert said == "classes: numbers of outputs, for x.ckpt does not say its classes"
    names, said = name_classes(loaded._replace(spec=replace(unnamed, num_classes=1000)))
    assert names[281] == ImageNetInfo().index_to_description(281) == "tabby, tabby cat"
    assert said == "classes: those of imagenet-1k, as x.ckpt has 1,000 outputs"


def test_random_weights_predict_nothing(colour_folder: Path) -> None:
    with pytest.warns(UserWarning, match="has random weights"):
        loaded = visionattn.load_model("vit_pico_patch4_32")
    with pytest.raises(UserError, match="nothing to predict, for the weights of vit_pico_patch4_32 are random"):
        predict(loaded, colour_folder / "val")
    loaded = visionattn.load_model("resnet_pico.cifar10", model_kwargs={"num_classes": 3})
    with pytest.raises(
        UserError, match=r"the head of resnet_pico\.cifar10 is random: its weights have 10 outputs, not 3"
    ):
        predict(loaded, colour_folder / "val")


def test_name_means_its_published_weights() -> None:
    assert visionattn.load_model("nat_pico").origin.weights == "pretrained"
    with pytest.warns(UserWarning, match="has random weights"):
        assert visionattn.load_model("nat_pico", pretrained=False).origin.weights == "random"
