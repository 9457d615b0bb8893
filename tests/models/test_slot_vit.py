"""A ViT whose pooling is slots: that it is the ViT otherwise, and timm's contract."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor

import visionattn  # noqa: F401  registers the models

NAME, BACKBONE = "slot_vit_pico_patch4_32", "vit_pico_patch4_32"
NARROW: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 2}
NAMES = ("slot_vit_pico_patch4_32", "slot_vit_small_patch16_224")


def create(**options: Any) -> Any:
    return timm.create_model(NAME, **{**NARROW, **options}).eval()


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size)


def test_features_equal_the_vit_that_gave_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    plain = timm.create_model(BACKBONE, **NARROW).eval()
    torch.save(plain.state_dict(), tmp_path / "vit.pth")
    overlay = {"file": str(tmp_path / "vit.pth"), "num_classes": 10}
    model = create(pretrained=True, pretrained_cfg_overlay=overlay)
    held = model.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(held[name], value), name
    assert {name.partition(".")[0] for name in held.keys() - plain.state_dict().keys()} == {"attn_pool"}
    x = images()
    torch.testing.assert_close(model.forward_features(x), plain.forward_features(x))
    other = create(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3)
    torch.testing.assert_close(other.blocks.state_dict(), plain.blocks.state_dict())
    assert other(x).shape == (2, 3)


def test_its_own_weights_keep_their_slots(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = create()
    torch.save(model.state_dict(), tmp_path / "slots.pth")
    overlay = {"file": str(tmp_path / "slots.pth"), "num_classes": 10}
    again = create(pretrained=True, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("set_pool", ["mean", "attention"])
def test_order_of_slots_and_patches_does_not_matter(set_pool: str) -> None:
    model = create(set_pool=set_pool)
    tokens = model.forward_features(images())
    expected = model.forward_head(tokens)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(64)])
    torch.testing.assert_close(model.forward_head(tokens[:, order]), expected)
    mu = model.attn_pool.slots.mu
    mu.data = mu.data.flip(0)
    torch.testing.assert_close(model.forward_head(tokens), expected)
    # The class token is none of the patches.
    tokens[:, 0] = 0
    torch.testing.assert_close(model.forward_head(tokens), expected)


def test_pooling_is_a_mean_of_normed_slots() -> None:
    model = create(set_pool="mean", num_slots=4)
    x = images()
    tokens = model.forward_features(x)
    slots, attention = model.attn_pool.slots(tokens[:, 1:])
    pooled = model.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(pooled, model.attn_pool.norm(slots).mean(1))
    torch.testing.assert_close(model.slot_maps(x), attention.unflatten(2, (8, 8)))


def test_slot_vit_is_deterministic_in_training_unless_slots_are_drawn() -> None:
    x = images()
    model = create().train()
    torch.testing.assert_close(model(x), model(x))
    drawn = create(slot_init="gaussian").train()
    assert not torch.allclose(drawn(x), drawn(x))
    torch.testing.assert_close(drawn.eval()(x), drawn(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "avg"}, "global_pool must be 'map' or '', got 'avg'"),
        ({"set_pool": "max"}, "set_pool must be one of mean, attention, got 'max'"),
        ({"num_slots": 0}, "num_slots must be at least 1, got 0"),
    ],
    ids=str,
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(**options)


# timm's contract


@pytest.mark.parametrize("name", NAMES)
def test_config_is_true(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        cfg = model.pretrained_cfg
        logits = model(torch.empty(1, *cfg["input_size"]))
    assert logits.shape == (1, cfg["num_classes"]) == (1, model.num_classes)
    assert model.get_submodule(cfg["first_conv"]).weight.shape[1] == cfg["input_size"][0]
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert cfg["license"]
    assert [entry["num_chs"] for entry in model.feature_info] == [model.num_features] * len(model.blocks)


def test_tags_of_the_backbone_are_all_registered() -> None:
    tags = {tag.partition(".")[2] for tag in timm.list_pretrained("vit_small_patch16_224.*")}
    assert tags
    assert {tag.partition(".")[2] for tag in timm.list_pretrained("slot_vit_small_patch16_224.*")} == tags


def test_classifier_can_change() -> None:
    model, x = create(), images()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0, "")
    assert model(x).shape == create(num_classes=0, global_pool="")(x).shape == (2, 65, 24)
    with pytest.raises(ValueError, match="there are no slots"):
        model.slot_maps(x)


def test_parameters_all_receive_a_gradient() -> None:
    for options in ({}, {"slot_init": "gaussian", "set_pool": "mean"}, {"slot_implicit": True}):
        model = create(num_classes=5, **options).train()
        model(images()).square().mean().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_intermediates_pruning_and_features_only() -> None:
    model, x = create(), images()
    features, levels = model.forward_intermediates(x)
    torch.testing.assert_close(features, model.forward_features(x))
    assert [tuple(level.shape) for level in levels] == [(2, 24, 8, 8)] * 3
    backbone = timm.create_model(NAME, features_only=True, out_indices=[0, -1], **NARROW)
    assert [tuple(level.shape) for level in backbone(x)] == [(2, 24, 8, 8)] * 2
    assert model.prune_intermediate_layers([1]) == [1]
    assert model(x).shape == (2, 65, 24)


def test_gradient_checkpointing_and_fx_graph_give_the_same() -> None:
    from timm.models._features_fx import create_feature_extractor

    model, x = create(num_classes=3, depth=2), images()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)
    model.set_grad_checkpointing(False)
    expected = model(x)
    torch.testing.assert_close(create_feature_extractor(model, ["head"])(x)["head"], expected)


def test_layer_decay_meta_device_channels_and_size() -> None:
    model = create(device=torch.device("meta"), dtype=torch.bfloat16)
    tensors = (*model.parameters(), *model.buffers())
    assert {(x.device.type, x.dtype) for x in tensors} == {("meta", torch.bfloat16)}
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5).param_groups
    assert len({group["lr_scale"] for group in groups}) == 5  # stem, three blocks, and what follows them
    decayed = {id(x) for group in groups if group["weight_decay"] for x in group["params"]}
    assert not {id(model.pos_embed), id(model.attn_pool.slots.mu)} & decayed
    assert id(model.attn_pool.slots.q.weight) in decayed
    grey = create(in_chans=1, num_classes=3, img_size=48)
    assert grey(torch.randn(2, 1, 48, 48)).shape == (2, 3)
    with pytest.raises(TypeError, match="no_such_option"):
        create(no_such_option=1)


def test_hub_folder_round_trip(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    model = create(num_classes=4)
    save_for_hf(model, tmp_path, model_config={"num_classes": 4}, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **NARROW).eval()
    x = images()
    torch.testing.assert_close(loaded(x), model(x))
