"""timm's configurations of models of tokens and of sequences are true; test_contract.py has the others."""

from typing import Any

import pytest
import timm
import torch

import visionattn  # noqa: F401  registers the models

FAMILIES = ("dcal_", "slot_", "terminator_1d", "vit_nano_", "vit_pico_", "resnet_")
NAMES = [
    name
    for name in timm.list_models()
    if timm.models.model_entrypoint(name).__module__.startswith("visionattn.") and name.startswith(FAMILIES)
]
SMALL = ("dcal_vit_nano", "slot_cnn_pico", "slot_vit_pico_patch4_32", "terminator_1d_pico")
each = pytest.mark.parametrize("name", NAMES)


def create(name: str, **options: Any) -> Any:
    return timm.create_model(name, device=torch.device("meta"), **options).eval()


def names_of(cfg: dict[str, Any], key: str) -> tuple[str, ...]:
    found = cfg.get(key) or ()
    return (found,) if isinstance(found, str) else tuple(found)


@each
def test_named_layers_exist(name: str) -> None:
    model = create(name)
    cfg, keys = model.pretrained_cfg, model.state_dict().keys()
    assert model.num_classes == cfg["num_classes"]
    assert names_of(cfg, "first_conv")
    for module in (*names_of(cfg, "first_conv"), *(names_of(cfg, "classifier") if cfg["num_classes"] else ())):
        assert f"{module}.weight" in keys


@pytest.mark.parametrize(
    "name",
    [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_shapes_are_as_configured(name: str) -> None:
    model = create(name)
    cfg = model.pretrained_cfg
    x = torch.empty(2, *cfg["input_size"], device="meta")
    features = model.forward_features(x)
    if features.dim() == 4:
        channels, size = (
            (3, features.shape[1:3]) if getattr(model, "output_fmt", "") == "NHWC" else (1, features.shape[2:])
        )
        assert tuple(size) == tuple(cfg["pool_size"])
    else:  # tokens have no size to pool
        channels = 2
    assert features.shape[channels] == model.num_features
    # DCAL's features are those of both branches, side by side.
    branches = 2 if getattr(model, "glca", None) is not None else 1
    assert model.head_hidden_size == branches * model.num_features
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert model(x).shape == create(name, num_classes=0)(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(x).shape == create(name, num_classes=0, global_pool="")(x).shape == features.shape
