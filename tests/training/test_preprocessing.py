"""Preprocessing that a model needs."""

from typing import Any

import timm
from timm.data.config import resolve_model_data_config

from visionattn.training import describe_model, describe_weights, label_names
from visionattn.training.preprocessing import adapt_preprocessing, describe_preprocessing, differing_keys

WANTED: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bilinear",
    "crop_pct": 0.9,
    "crop_mode": "center",
}


def test_preprocessing_is_timms() -> None:
    """For weights that are not built, too."""
    expected = resolve_model_data_config(timm.create_model("nat_pico.cifar10"))
    spec = describe_weights("nat_pico.cifar10", True, None, {})
    assert spec is not None
    assert spec.preprocessing == expected
    assert expected["input_size"] == (3, 32, 32)
    assert describe_weights("nat_pico.cifar10", False, None, {}) is None


def test_preprocessing_follows_the_size_and_channels_of_the_model() -> None:
    adapted = adapt_preprocessing(WANTED, {"in_chans": 1, "img_size": [64, 48]})
    assert adapted["input_size"] == (1, 64, 48)
    assert adapted["mean"] == ((0.485 + 0.456 + 0.406) / 3,)
    assert adapted["std"] == (0.5,)
    assert adapt_preprocessing(WANTED, {}) == WANTED


def test_line_states_preprocessing_and_differences() -> None:
    line = "images 32×32, crop 0.9 (center), bilinear, mean 0.485, 0.456, 0.406, std 0.5, 0.5, 0.5, as m wants them"
    assert describe_preprocessing(WANTED, WANTED, "m") == line
    used = WANTED | {"input_size": [3, 48, 48], "crop_pct": 1.0, "mean": [0.485, 0.456, 0.4059]}
    assert differing_keys(used, WANTED) == ["input_size", "crop_pct"], "a rounded mean is the same"
    assert describe_preprocessing(used, WANTED, "m").endswith("as m wants them, except for input_size, crop_pct")


def test_class_names_come_from_a_list_or_from_numbers() -> None:
    assert label_names({"label_names": ("cat", "dog")}) == ["cat", "dog"]
    assert label_names({"label_names": {"10": "c", "0": "a", "2": "b"}}) == ["a", "b", "c"]
    assert label_names({"label_names": None}) == label_names({}) == []


def test_class_names_of_published_weights_match_their_head() -> None:
    overlay = {"label_names": [f"c{number}" for number in range(10)]}
    for num_classes, known in ((10, 10), (3, 0)):
        kwargs = {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": num_classes}
        spec = describe_model(timm.create_model("resnet_pico.cifar10", **kwargs), "resnet_pico.cifar10", **kwargs)
        assert len(spec.class_names) == known
