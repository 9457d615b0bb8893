"""Tokens of every family: class token, registers and patches where timm puts them, the final norm, the images."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn

import visionattn.models  # noqa: F401  registers nat_pico
from visionattn.probing.frozen import FrozenBackbone, Layer, TokenLayout, weights_hash

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Family(NamedTuple):
    name: str
    kwargs: Mapping[str, Any]
    layout: TokenLayout
    size: int
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    crop_pct: float


FAMILIES = {
    "MAE": Family("vit_base_patch16_224.mae", SMALL, TokenLayout(32, (14, 14), 1), 224, IMAGENET, 0.9),
    "DINOv2": Family(
        "vit_small_patch14_reg4_dinov2.lvd142m", SMALL, TokenLayout(32, (37, 37), 5, 4), 518, IMAGENET, 1.0
    ),
    "CLIP": Family("vit_base_patch16_clip_quickgelu_224.openai", SMALL, TokenLayout(32, (14, 14), 1), 224, OPENAI, 0.9),
    "SigLIP": Family("vit_base_patch16_siglip_256.v2_webli", SMALL, TokenLayout(32, (16, 16)), 256, HALF, 0.9),
    "I-JEPA": Family("vit_huge_patch14_gap_224.in1k_ijepa", SMALL, TokenLayout(32, (16, 16)), 224, IMAGENET, 0.9),
    "DINOv3": Family("vit_small_patch16_dinov3.lvd1689m", SMALL, TokenLayout(32, (16, 16), 5, 4), 256, IMAGENET, 1.0),
    "EVA02": Family("eva02_base_patch14_224.mim_in22k", SMALL, TokenLayout(32, (16, 16), 1), 224, OPENAI, 0.9),
    "Hiera": Family(
        "hiera_tiny_224.mae", {"embed_dim": 8, "stages": (1, 1, 1, 1)}, TokenLayout(64, (7, 7)), 224, IMAGENET, 0.9
    ),
    "ConvNeXt": Family(
        "convnext_tiny.dinov3_lvd1689m",
        {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
        TokenLayout(32, (7, 7)),
        224,
        IMAGENET,
        1.0,
    ),
    "NAT": Family("nat_pico", {}, TokenLayout(192, (4, 4)), 32, IMAGENET, 1.0),
    "MambaOut": Family("test_mambaout", {}, TokenLayout(64, (5, 5)), 160, IMAGENET, 1.0),  # declares NHWC
}


def build(name: str, **kwargs: Any) -> nn.Module:
    """A model with random weights whose norms are not those it starts with."""
    model = timm.create_model(name, num_classes=0, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def random_images(backbone: FrozenBackbone, count: int = 2) -> Tensor:
    return torch.randn(count, *backbone.preprocessing["input_size"])


def final_tokens(model: Any, images: Tensor) -> Tensor:
    """Return the tokens of the last layer by timm's own methods, written out by kind of model."""
    with torch.no_grad():
        if hasattr(model, "reroll"):
            features = model.forward_intermediates(images, intermediates_only=True, output_fmt="NHWC")[-1]
            return model.head.norm(features).flatten(1, 2)
        features = model.forward_features(images)
        if getattr(model, "output_fmt", "") == "NHWC":
            return model.head.norm(features).flatten(1, 2)
        if features.dim() == 4:
            norm = getattr(model.head, "norm", nn.Identity())
            return norm(features).flatten(2).transpose(1, 2)
        return getattr(model, "fc_norm", nn.Identity())(features)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_last_layer_is_the_input_of_the_classifier(family: Family) -> None:
    model = build(family.name, **family.kwargs)
    backbone = FrozenBackbone(model, family.name, model_kwargs=family.kwargs)
    images = random_images(backbone)
    tokens = backbone(images)["last"]
    assert backbone.layouts == {"last": family.layout}
    assert tokens.shape == (2, family.layout.num_tokens, family.layout.dim)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, final_tokens(model, images))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_preprocessing_is_that_of_the_weights(family: Family) -> None:
    preprocessing = FrozenBackbone(build(family.name, **family.kwargs), family.name).preprocessing
    config = timm.get_pretrained_cfg(family.name)
    assert preprocessing["input_size"] == config.input_size == (3, family.size, family.size)
    assert (preprocessing["mean"], preprocessing["std"]) == (config.mean, config.std) == family.statistics
    assert preprocessing["interpolation"] == config.interpolation == "bicubic"
    assert preprocessing["crop_pct"] == config.crop_pct == family.crop_pct


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_tapped_layers_equal_forward_intermediates(family: Family) -> None:
    model: Any = build(family.name, **family.kwargs)
    backbone = FrozenBackbone(model, family.name, ["last", -1, 0])
    images = random_images(backbone)
    with torch.no_grad():
        features = model.forward_intermediates(images, intermediates_only=True)
    last = len(features) - 1
    assert backbone.layers == ("last", last, 0)
    tokens = backbone(images)
    assert list(tokens) == ["last", last, 0]

    torch.testing.assert_close(tokens[last], tokens["last"])
    first = features[0].flatten(2).transpose(1, 2)
    if first.shape[-1] == family.layout.dim:  # so that the final norm is its norm, too
        norm = model.norm if isinstance(model.norm, nn.LayerNorm) else model.fc_norm
        first = norm(first).detach()
    torch.testing.assert_close(tokens[0][:, backbone.layouts[0].num_prefix_tokens :], first)
    assert backbone.layouts[0].grid == features[0].shape[2:]
    torch.testing.assert_close(FrozenBackbone(model, family.name, [0])(images)[0], tokens[0])


@pytest.mark.parametrize("name", ["DINOv2", "DINOv3", "CLIP"])
def test_prefix_tokens_of_tapped_layers_are_normalised_with_them(name: str) -> None:
    family = FAMILIES[name]
    model: Any = build(family.name, **family.kwargs)
    backbone = FrozenBackbone(model, family.name, [0])
    images = random_images(backbone, 1)
    with torch.no_grad():
        ((patches, prefix),) = model.forward_intermediates(
            images, indices=[0], return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
        )
    torch.testing.assert_close(backbone(images)[0], torch.cat([prefix, patches], dim=1))
    assert backbone.layouts[0] == family.layout


def test_blocks_without_norm_equal_the_blocks_of_the_model() -> None:
    model: Any = build("vit_tiny_patch16_224", img_size=32, **SMALL)
    options: dict[str, Any] = {"name": "vit_tiny_patch16_224", "preprocessing": {"input_size": (3, 32, 32)}}
    backbone = FrozenBackbone(model, **options, layers=None, norm_blocks=False)
    assert (backbone.layers, backbone.depth) == ((0, 1), 2)
    images = random_images(backbone)
    with torch.no_grad():
        tokens = model.blocks[0](model.norm_pre(model._pos_embed(model.patch_embed(images))))
    torch.testing.assert_close(backbone(images)[0], tokens)
    torch.testing.assert_close(FrozenBackbone(model, **options, layers=[0])(images)[0], model.norm(tokens).detach())
    assert FrozenBackbone(model, **options, layers=None).identity != backbone.identity


def test_undeclared_class_token_is_not_a_patch() -> None:
    backbone = FrozenBackbone(timm.create_model("coat_lite_tiny"), "coat_lite_tiny", ["last", -1])
    assert backbone.layouts == {"last": TokenLayout(320, (7, 7), 1), 3: TokenLayout(320, (7, 7))}


def test_hiera_tokens_are_row_by_row() -> None:
    model: Any = build("hiera_tiny_224", embed_dim=8, stages=(1, 1, 1, 1), q_pool=2)
    backbone = FrozenBackbone(model, "hiera_tiny_224")
    images = random_images(backbone, 1)
    tokens = backbone(images)["last"]
    torch.testing.assert_close(tokens, final_tokens(model, images))
    with torch.no_grad():
        assert not torch.allclose(tokens, model.head.norm(model.forward_features(images)))


def test_tokens_of_a_convolution_are_row_by_row() -> None:
    backbone = FrozenBackbone(build("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), "convnext_tiny", [0])
    images = random_images(backbone, 1)
    changed = images.clone()
    changed[..., :4, 8:12] += 1  # the third patch of the first row, of 56
    difference = (backbone(images)[0] - backbone(changed)[0]).abs().sum(2)[0]
    assert difference.argmax() == 2


def test_backbone_is_frozen_and_its_tokens_train_heads() -> None:
    model = build("vit_tiny_patch16_224", img_size=32, proj_drop_rate=0.5, **SMALL)
    model.train()
    backbone = FrozenBackbone(model, "vit_tiny_patch16_224", preprocessing={"input_size": (3, 32, 32)}).train()
    images = random_images(backbone, 3)
    tokens = backbone(images)["last"]
    torch.testing.assert_close(backbone(images)["last"], tokens, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    head = nn.Linear(32, 2)
    head(tokens).sum().backward()
    assert head.weight.grad is not None


def test_autocast_computes_in_low_precision_and_returns_float32() -> None:
    model = build("vit_tiny_patch16_224", img_size=32, **SMALL)
    options: dict[str, Any] = {"preprocessing": {"input_size": (3, 32, 32)}}
    exact = FrozenBackbone(model, "vit_tiny_patch16_224", **options)
    rounded = FrozenBackbone(model, "vit_tiny_patch16_224", amp_dtype=torch.bfloat16, **options)
    images = random_images(exact)
    tokens = rounded(images)["last"]
    assert tokens.dtype == torch.float32
    assert not torch.equal(tokens, exact(images)["last"])
    torch.testing.assert_close(tokens, exact(images)["last"], rtol=0.1, atol=0.1)


def test_identity_changes_with_all_that_features_depend_on() -> None:
    model = build("vit_tiny_patch16_224", img_size=32, **SMALL)
    options: dict[str, Any] = {"name": "vit_tiny_patch16_224", "preprocessing": {"input_size": (3, 32, 32)}}
    identity = FrozenBackbone(model, **options).identity
    assert FrozenBackbone(model, **options).identity == identity
    others = [
        FrozenBackbone(model, **options | {"name": "another"}),
        FrozenBackbone(model, **options, layers=[0]),
        FrozenBackbone(model, **options, model_kwargs={"depth": 2}),
        FrozenBackbone(model, **options | {"preprocessing": {"input_size": (3, 32, 32), "crop_pct": 0.9}}),
        FrozenBackbone(model, **options, amp_dtype=torch.bfloat16),
    ]
    assert all(other.identity != identity for other in others)
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.fc1.bias")[3] += 1e-6
    assert FrozenBackbone(model, **options).identity["weights"] != identity["weights"]


def test_weights_hash_covers_names_types_and_shapes() -> None:
    linear = nn.Linear(4, 2, bias=False)
    renamed, reshaped = nn.Module(), nn.Linear(2, 4, bias=False)
    renamed.other = linear.weight
    reshaped.weight.data = linear.weight.data.reshape(4, 2)
    hashes = {weights_hash(module) for module in (linear, renamed, reshaped)}
    hashes.add(weights_hash(nn.BatchNorm1d(3)))
    assert len(hashes) == 4
    assert weights_hash(linear) in hashes
    hashes.add(weights_hash(linear.to(torch.bfloat16)))
    assert len(hashes) == 5


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([2], "no layer 2; there are 0 to 1, and 'last'"),
        ([-3], "no layer -3"),
        (["first"], "no layer 'first'"),
        ([1, -1], "each of them once"),
        ([], "one or more"),
    ],
)
def test_unknown_layers_are_refused(layers: list[Layer], message: str) -> None:
    model = build("vit_tiny_patch16_224", img_size=32, **SMALL)
    with pytest.raises(ValueError, match=message):
        FrozenBackbone(model, "vit_tiny_patch16_224", layers, preprocessing={"input_size": (3, 32, 32)})


def test_dcal_tokens_equal_self_attention_tokens() -> None:
    model = build("dcal_vit_pico")
    x = torch.randn(2, *model.default_cfg["input_size"])
    with torch.no_grad():
        combined = model.forward_features(x)
    backbone = FrozenBackbone(model, "dcal_vit_pico")
    tokens = backbone(x)["last"]
    assert torch.equal(tokens, combined[:, :-1]), "all but the global-local one"
    layout = backbone.layouts["last"]
    assert (layout.num_prefix_tokens, layout.num_tokens) == (1, tokens.shape[1])


def test_models_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ends in 1 tokens.*grid of 7 × 7; tap a block"):
        FrozenBackbone(timm.create_model("pit_ti_224"), "pit_ti_224")
    with pytest.raises(ValueError, match=r"takes no images 3 × 96 × 96.*input_size"):
        FrozenBackbone(build("vit_tiny_patch16_224", **SMALL), "vit", preprocessing={"input_size": (3, 96, 96)})
    with pytest.raises(ValueError, match="has no forward_intermediates"):
        FrozenBackbone(nn.Linear(2, 2), "linear", preprocessing={"input_size": (3, 4, 4)})
