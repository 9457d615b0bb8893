"""Faults of segmentation probes: masks, names of classes, models and features that do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionattn.probing.frozen import FrozenBackbone

Fails = Callable[..., str]

MODEL = ("--model", "test_vit", "--model_kwargs", json.dumps({"img_size": 32, "patch_size": 8, "depth": 2}))
FAST = ("--device", "cpu", "--data.num_workers", "0", "--data.img_size", "32", "--training.epochs", "1")
SYNTHETIC = ("--data.length", "4", "--data.val_length", "2")


def write(root: Path, values: Any = None, count: int = 4) -> Path:
    for number in range(count):
        for folder, array in (("images", np.full((8, 8, 3), 40 * number)), ("labels", np.eye(8))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            pixels = values if folder == "labels" and number == 1 and values is not None else array
            Image.fromarray(np.asarray(pixels, np.uint8)).save(root / folder / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("values", "names", "says"),
    [
        pytest.param(np.zeros((8, 9)), None, "it has 8×8 pixels, and its mask 9×8", id="size"),
        pytest.param(np.full((8, 8), 7), "sky\ntree", "labels/1.png has class 7, where 2 are known", id="class"),
        pytest.param(np.zeros((8, 8, 3)), None, "is of mode RGB: class numbers are grey", id="colour"),
        pytest.param(None, "sky\n\ntree", "has no name or an empty one", id="names"),
        pytest.param(None, '{"a": 1}', "class_names.json cannot be read", id="json"),
    ],
)
def test_mask_that_does_not_fit_is_named(
    fails: Fails, tmp_path: Path, values: Any, names: str | None, says: str
) -> None:
    root = write(tmp_path / "data", values)
    if names:
        (root / f"class_names.{'json' if names[0] == '{' else 'txt'}").write_text(names)
    words = ("--data.name", "semantic_folder", "--data.root", str(root))
    fails("probe-seg", *MODEL, *FAST, *words, says=(says, "data"))


def test_folder_without_labels_is_an_error(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    words = ("--data.name", "semantic_folder", "--data.root", str(tmp_path / "data"))
    fails("probe-seg", *MODEL, *FAST, *words, says=("no images with labels for train", "images/…/NAME.jpg"))
    (tmp_path / "data" / "labels").mkdir()
    fails("probe-seg", *MODEL, *FAST, *words, says="no images under")


def test_model_without_patches_is_an_error(fails: Fails) -> None:
    words = ("--model", "pit_ti_224", "--data.img_size", "224")
    fails("probe-seg", *FAST, *SYNTHETIC, *words, says=("model 'pit_ti_224' ends in 1 tokens", "tap a block"))


def test_layers_of_different_grids_are_refused_before_the_extraction(fails: Fails, tmp_path: Path) -> None:
    words = ("--model", "nat_pico.cifar10", "--features.layers", "0,2", "--features.cache", str(tmp_path / "cache"))
    fails("probe-seg", *FAST, *SYNTHETIC, *words, says=("layers [0, 2] cannot be put side by side", "each_layer"))
    assert not list((tmp_path / "cache").iterdir())


def test_too_few_images_are_an_error(fails: Fails) -> None:
    words = ("--data.length", "2", "--data.val_length", "1")
    fails("probe-seg", *MODEL, *FAST, *words, says="2 images of train are too few")


def test_features_that_are_not_finite_are_an_error(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = FrozenBackbone.forward

    def broken(self: FrozenBackbone, images: Any) -> Any:
        return {layer: tokens * float("nan") for layer, tokens in forward(self, images).items()}

    monkeypatch.setattr(FrozenBackbone, "forward", broken)
    fails("probe-seg", *MODEL, *FAST, *SYNTHETIC, says=("go up to nan", "if they are not finite"))
