"""Checkpoints in every published layout load with the tensors and logits of that layout; see `nat_layouts`."""

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.nat_layouts import (
    DILATIONS,
    ISOTROPIC,
    LAYOUTS,
    PYRAMID,
    Weights,
    authors_pyramid,
    norm,
    random_weights,
    to_authors,
    to_detector,
    to_hugging_face,
    to_vit,
)
from visionattn.models._nat_checkpoints import checkpoint_filter_fn
from visionattn.models._nat_padding import PADDING


def load(name: str, weights: Mapping[str, Any], folder: Path, **options: Any) -> nn.Module:
    path = folder / "weights.pth"
    torch.save(dict(weights), path)
    overlay = {"file": str(path), "num_classes": 5}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()


def weights_of(model: nn.Module) -> Weights:
    """Return the state dict without the entry for padding."""
    return {name: value for name, value in model.state_dict().items() if name != PADDING}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_and_logits_match_the_layout(layout: str, tmp_path: Path) -> None:
    name, options, to_theirs, forward, size = LAYOUTS[layout]
    ours = random_weights(name, **options)
    theirs = to_theirs(ours)
    model = load(name, theirs, tmp_path, **options)
    torch.testing.assert_close(weights_of(model), ours, rtol=0, atol=0)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(logits, forward(theirs, x), rtol=1e-4, atol=1e-4)
    assert logits.std() > 0.1


def test_detection_backbone(tmp_path: Path) -> None:
    """The norm of the last level is the only one that a classifier has; the classifier stays, with a warning."""
    options = {**PYRAMID, "dilations": DILATIONS}
    ours = random_weights("dinat_mini", **options)
    detector = to_detector(ours)
    with pytest.warns(UserWarning, match=r"no classifier: head\.fc\.weight, head\.fc\.bias keep their values"):
        model = load("dinat_mini", detector, tmp_path, **options)
    loaded = model.state_dict()
    for name, value in ours.items():
        assert torch.equal(loaded[name], value) != name.startswith("head."), name
    x = torch.randn(1, 3, 200, 200)
    features = norm(detector, "norm3", authors_pyramid(detector, "levels", x, DILATIONS))
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(x).permute(0, 2, 3, 1), features, rtol=1e-4, atol=1e-4)

    whole = {f"backbone.{name}": value for name, value in detector.items()} | {"neck.conv.weight": torch.zeros(3)}
    with warnings.catch_warnings(action="ignore"):
        model = load("dinat_mini", {"meta": {"epoch": 36}, "state_dict": whole}, tmp_path, **options)
    assert torch.equal(model.norm.weight, ours["norm.weight"])


def test_hugging_face_model_and_backbone_without_classifier(tmp_path: Path) -> None:
    ours = random_weights("nat_mini", **PYRAMID)
    bare = {name.removeprefix("dinat."): value for name, value in to_hugging_face(ours).items()}
    bare = {name: value for name, value in bare.items() if not name.startswith("classifier.")}
    backbone = {name: value for name, value in bare.items() if not name.startswith("layernorm.")}
    backbone |= {f"hidden_states_norms.stage4.{part}": bare[f"layernorm.{part}"] for part in ("weight", "bias")}
    backbone |= {f"hidden_states_norms.stage2.{part}": torch.zeros(32) for part in ("weight", "bias")}
    for weights in (bare, backbone):
        model = load("nat_mini", weights, tmp_path, num_classes=0, **PYRAMID)
        torch.testing.assert_close(weights_of(model), {k: v for k, v in ours.items() if not k.startswith("head.")})


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "state_dict_ema", "model_ema"])
def test_wrappers_and_prefixes(wrapper: str) -> None:
    ours = random_weights("nat_mini", **PYRAMID)
    wrapped = {wrapper: {f"module.{name}": value for name, value in to_authors(ours).items()}, "epoch": 3}
    model = timm.create_model("nat_mini", num_classes=5, **PYRAMID)
    model.pretrained_cfg["num_classes"] = 5
    torch.testing.assert_close(checkpoint_filter_fn(wrapped, model), ours | {PADDING: torch.tensor(True)})


def test_our_own_layout_passes_as_it_is(tmp_path: Path) -> None:
    for name, options in (("dinat_s_tiny", PYRAMID | {"dilations": DILATIONS}), ("vitrpb_small", ISOTROPIC)):
        ours = random_weights(name, **options)
        torch.testing.assert_close(load(name, ours, tmp_path, **options).state_dict(), ours)


def test_another_number_of_classes_or_channels_is_left_to_timm(tmp_path: Path) -> None:
    ours = random_weights("nat_mini", **PYRAMID)
    model = load("nat_mini", to_authors(ours), tmp_path, num_classes=3, in_chans=1, **PYRAMID)
    assert model.head.fc.weight.shape == (3, 128)
    torch.testing.assert_close(model.patch_embed.proj[0].weight, ours["patch_embed.proj.0.weight"].sum(1, keepdim=True))
    torch.testing.assert_close(model.levels.state_dict()["3.blocks.0.attn.rpb"], ours["levels.3.blocks.0.attn.rpb"])
    features = load("nat_mini", to_authors(ours), tmp_path, features_only=True, **PYRAMID)
    torch.testing.assert_close(features.levels_2.blocks[0].norm1.weight, ours["levels.2.blocks.0.norm1.weight"])


def test_tables_of_another_kernel_size_are_interpolated(tmp_path: Path) -> None:
    ours = random_weights("nat_mini", **PYRAMID)
    model = load("nat_mini", to_authors(ours), tmp_path, **{**PYRAMID, "kernel_size": 5})
    expected = F.interpolate(ours["levels.2.blocks.1.attn.rpb"][None], (9, 9), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(model.levels[2].blocks[1].attn.rpb.data, expected)

    vit = random_weights("vitrpb_small", **{**ISOTROPIC, "kernel_size": None, "img_size": 64})
    larger = load("vitrpb_small", to_vit(vit), tmp_path, **{**ISOTROPIC, "kernel_size": None, "img_size": (96, 64)})
    assert larger.blocks[0].attn.rpb.shape == (2, 11, 7)


REJECTED: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (
        lambda w: (w.pop("norm.weight"), w.pop("levels.0.downsample.norm.bias")),
        r"2 keys missing in the file: levels\.1\.downsample\.norm\.bias, norm\.weight",
    ),
    "half-a-classifier": (lambda w: w.pop("head.bias"), r"1 key missing in the file: head\.fc\.bias"),
    "left-over": (
        lambda w: w.update({"levels.0.blocks.0.gamma1": torch.ones(16)}),
        r"1 key left over in the file: levels\.0\.blocks\.0\.gamma1",
    ),
    "no-tensor": (lambda w: w.update({"epoch": 3}), "1 key left over in the file: epoch"),  # type: ignore[dict-item]
    "heads": (
        lambda w: w.update({"levels.1.blocks.0.attn.rpb": torch.zeros(4, 5, 5)}),
        r"levels\.1\.blocks\.0\.attn\.rpb \(4×5×5 in the file, 2×5×5 in the model\)",
    ),
    "classes": (
        lambda w: w.update({"head.weight": torch.zeros(6, 128)}),
        r"head\.weight \(6×128 in the file, 5×128 in the model\)",
    ),
    "two-final-norms": (
        lambda w: w.update({"norm3.weight": torch.zeros(128)}),
        r"1 key left over in the file: norm3\.weight",
    ),
    "many": (lambda w: w.clear(), r"keys missing in the file: (\S+, ){3}\S+ and \d+ more"),
}


@pytest.mark.parametrize("defect", REJECTED)
def test_unfit_keys_are_named_in_one_line(defect: str, tmp_path: Path) -> None:
    spoil, message = REJECTED[defect]
    weights = to_authors(random_weights("nat_mini", **PYRAMID))
    spoil(weights)
    with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError, match=message) as error:
        load("nat_mini", weights, tmp_path, **PYRAMID)
    assert "does not fit nat_mini" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_key_of_hugging_face_is_named(tmp_path: Path) -> None:
    weights = to_hugging_face(random_weights("nat_mini", **PYRAMID))
    del weights["dinat.encoder.levels.0.layers.1.attention.self.key.weight"]
    with pytest.raises(
        ValueError, match=r"missing in the file: levels\.0\.blocks\.1\.attn\.qkv\.weight; 2 keys left over"
    ):
        load("nat_mini", weights, tmp_path, **PYRAMID)


@pytest.mark.parametrize(
    "name", [name for name in timm.list_models(["nat_*", "dinat_*", "vitrpb_*"]) if "pico" not in name]
)
def test_published_models_all_have_a_url(name: str) -> None:
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.url.startswith("https://shi-labs.com/projects/")
    assert cfg.url.endswith(".pth")
    assert cfg.license == "mit"
    assert cfg.num_classes == 1000


def test_pretrained_tags_build_the_trained_architecture() -> None:
    model = timm.create_model("dinat_large_384_k11.in22k", device=torch.device("meta"))
    assert model.num_classes == 21841
    assert model.pretrained_cfg["input_size"] == (3, 384, 384)
    assert model.levels[0].blocks[1].attn.rpb.shape == (6, 21, 21)
    assert timm.get_pretrained_cfg("dinat_large_384.in22k_ft_in1k").crop_pct == 1.0


def outputs(model: nn.Module, size: int = 56) -> Tensor:
    with torch.no_grad():
        return model.eval()(torch.linspace(-2, 2, 3 * size * size).view(1, 3, size, size))


SMALL_MAPS: dict[str, Any] = {**PYRAMID, "dilations": DILATIONS}


def fitting(legacy_pad: bool, ours: Weights) -> Tensor:
    model = timm.create_model("dinat_mini", num_classes=5, legacy_pad=legacy_pad, **SMALL_MAPS)
    model.load_state_dict(ours)
    return outputs(model)


@pytest.mark.parametrize("to_theirs", [to_authors, to_hugging_face])
def test_published_weights_pad_by_default(to_theirs: Callable[..., Any], tmp_path: Path) -> None:
    ours = random_weights("dinat_mini", **SMALL_MAPS)
    with pytest.warns(UserWarning, match="trained with zeros around maps that are smaller than a window") as said:
        model = load("dinat_mini", to_theirs(ours), tmp_path, **SMALL_MAPS)
    assert len([warning for warning in said if "zeros" in str(warning.message)]) == 1
    torch.testing.assert_close(outputs(model), fitting(True, ours))
    told = load("dinat_mini", to_theirs(ours), tmp_path, legacy_pad=False, **SMALL_MAPS)
    torch.testing.assert_close(outputs(told), fitting(False, ours))
    assert not torch.allclose(outputs(told), outputs(model))
    scratch = timm.create_model("dinat_mini", num_classes=5, **SMALL_MAPS)
    scratch.load_state_dict(ours)
    torch.testing.assert_close(outputs(scratch), outputs(told))


@pytest.mark.filterwarnings("ignore:these weights")
def test_padding_travels_with_the_weights(tmp_path: Path) -> None:
    ours = random_weights("dinat_mini", **SMALL_MAPS)
    model = load("dinat_mini", to_authors(ours), tmp_path, **SMALL_MAPS)
    other = timm.create_model("dinat_mini", num_classes=5, **SMALL_MAPS)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(outputs(other), outputs(model))
    whole = nn.ModuleDict({"model": timm.create_model("dinat_mini", num_classes=5, **SMALL_MAPS)})
    whole.load_state_dict({f"model.{name}": value for name, value in model.state_dict().items()})
    torch.testing.assert_close(outputs(copy.deepcopy(whole)["model"]), outputs(model))
    other.load_state_dict({name: ours[name] for name in ours if name.startswith("head.")}, strict=False)
    torch.testing.assert_close(outputs(other), outputs(model))
    other.load_state_dict(ours)  # weights that say nothing were trained without
    torch.testing.assert_close(outputs(other), fitting(False, ours))
