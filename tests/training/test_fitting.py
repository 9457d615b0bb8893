"""Files of weights that other programs wrote: what loads, what is reported, what is refused."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from visionattn.training import load_checkpoint, load_plain

NAME = "vit_nano_patch4_32"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return timm.create_model(NAME, num_classes=7).eval()


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


def headless(model: nn.Module) -> Weights:
    return {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


FORMATS: dict[str, Callable[[Weights], Any]] = {
    "bare": lambda weights: weights,
    "MAE": lambda weights: {"model": {**weights, "mask_token": torch.zeros(1), "decoder.norm.bias": torch.zeros(1)}},
    "DINO": lambda weights: {
        "student": under("module.backbone.", {name: value * 0 for name, value in weights.items()}),
        "teacher": under("backbone.", weights) | {"head.mlp.0.weight": torch.zeros(3, 3)},
        "epoch": 3,
    },
    "MoCo": lambda weights: {
        "state_dict": under("module.base_encoder.", weights)
        | {"module.base_encoder.head.0.weight": torch.zeros(3, 3)}
        | under("module.momentum_encoder.", {name: value * 0 for name, value in weights.items()})
    },
    "MoCo, sorted": lambda weights: (
        under("encoder_k.", {name: value * 0 for name, value in weights.items()}) | under("encoder_q.", weights)
    ),
}


@pytest.mark.filterwarnings("ignore:.*no use for")
@pytest.mark.parametrize("kind", FORMATS)
def test_headless_file_gives_features(kind: str, vit: nn.Module, save: Callable[[Any], Path]) -> None:
    model, spec = load_checkpoint(save(FORMATS[kind](headless(vit))), model_name=NAME)
    x = torch.randn(2, 3, 32, 32)
    assert spec.num_classes == 0
    torch.testing.assert_close(model(x), vit.forward_head(vit.forward_features(x), pre_logits=True))


@pytest.mark.parametrize(("kind", "first"), [("MAE", "decoder.norm.bias"), ("DINO", "head.mlp.0.weight")])
def test_keys_without_use_are_reported(kind: str, first: str, vit: nn.Module, save: Callable[[Any], Path]) -> None:
    path = save(FORMATS[kind](headless(vit)))
    with pytest.warns(
        UserWarning, match=r"weights\.pth: \d keys? that VisionTransformer has no use for, first"
    ) as found:
        load_plain(path, NAME)
    assert any(first in str(warning.message) for warning in found)


def test_positions_are_resampled_as_timm_does(vit: nn.Module, save: Callable[[Any], Path]) -> None:
    path = save(vit.state_dict())
    overlay = {"file": str(path), "num_classes": 7}
    expected = timm.create_model(NAME, pretrained=True, num_classes=7, img_size=48, pretrained_cfg_overlay=overlay)
    model, spec = load_checkpoint(path, model_name=NAME, model_kwargs={"img_size": 48})
    assert spec.num_classes == 7
    torch.testing.assert_close(model.state_dict(), expected.state_dict())


def test_first_convolution_is_adapted_as_timm_does(vit: nn.Module, save: Callable[[Any], Path]) -> None:
    path = save(vit.state_dict())
    overlay = {"file": str(path), "num_classes": 7}
    expected = timm.create_model(NAME, pretrained=True, num_classes=7, in_chans=1, pretrained_cfg_overlay=overlay)
    with pytest.warns(UserWarning, match=r"patch_embed\.proj is adapted from 3 to 1 channels"):
        model = load_plain(path, NAME, {"in_chans": 1})
    torch.testing.assert_close(model.state_dict(), expected.state_dict())


def test_file_with_all_keys_loads_in_silence(vit: nn.Module, save: Callable[[Any], Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(load_plain(save(vit.state_dict()), NAME).state_dict(), vit.state_dict())


@pytest.mark.filterwarnings("ignore:these weights")
def test_authors_layout_loads_by_the_filter_of_its_family(save: Callable[[Any], Path]) -> None:
    nat = timm.create_model("nat_pico", num_classes=7).eval()
    theirs = {
        re.sub(r"levels\.(\d)\.down", lambda m: f"levels.{int(m[1]) - 1}.down", name).replace(
            "head.fc.", "head."
        ): value
        for name, value in nat.state_dict().items()
    }
    model, spec = load_checkpoint(save({"state_dict": theirs}), model_name="nat_pico")
    assert spec.num_classes == 7
    x = torch.randn(1, 3, 64, 64)  # on smaller maps they pad
    torch.testing.assert_close(model(x), nat(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("norm.bias"), r"1 key missing in the file, first norm\.bias"),
        (
            lambda weights: weights.update({"blocks.6.norm1.bias": torch.zeros(96), "mask_token": torch.zeros(1)}),
            r"1 key unknown to the model, first blocks\.6\.norm1\.bias",
        ),
        (
            lambda weights: weights.update({"norm.bias": torch.zeros(95)}),
            r"1 key of another shape, first norm\.bias \(95 in the file, 96 in the model\)",
        ),
    ],
    ids=["missing", "deeper", "wider"],
)
@pytest.mark.filterwarnings("ignore:.*no use for")
def test_wrong_keys_are_named_in_one_line(
    change: Callable[[Weights], object], message: str, vit: nn.Module, save: Callable[[Any], Path]
) -> None:
    weights = dict(vit.state_dict())
    change(weights)
    with pytest.raises(ValueError, match=rf"does not fit {NAME}: {message}\. Name the architecture") as error:
        load_plain(save(weights), NAME)
    assert "\n" not in str(error.value)


def test_head_that_is_asked_for_must_be_there(vit: nn.Module, save: Callable[[Any], Path]) -> None:
    with pytest.raises(ValueError, match=r"2 keys missing in the file, first head\.weight"):
        load_plain(save(headless(vit)), NAME, {"num_classes": 7})


def test_class_names_survive_other_arguments(checkpoint: Path) -> None:
    _model, spec = load_checkpoint(checkpoint, model_name="test_resnet", model_kwargs={"in_chans": 3})
    assert spec.class_names == load_checkpoint(checkpoint)[1].class_names
