"""Masking, encoding of what is visible, the decoder and its targets; and timm's contract for the small ViT."""

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.nn import functional as F

import visionattn  # noqa: F401  registers the models
from visionattn.models.masked_autoencoder import (
    MaskedDecoder,
    Masking,
    check_encoder,
    encode_visible,
    fill_hidden,
    hidden_patches,
    mask_patches,
    patchify,
)

NAME = "vit_pico_patch4_32"
SMALL: dict[str, Any] = {"img_size": (8, 12), "patch_size": (4, 2), "embed_dim": 24, "depth": 2, "num_heads": 2}
PATCHES = 12
LAYOUTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "no prefix": {"class_token": False, "global_pool": "avg"},
    "norm before": {"pre_norm": True, "init_values": 0.1},
    "any size": {"dynamic_img_size": True},
}


def encoder(**options: Any) -> VisionTransformer:
    return VisionTransformer(**{**SMALL, "num_classes": 0, **options}).eval()


def images(count: int = 3, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, 8, 12)


def masks(count: int = 3, ratio: float = 0.75) -> Masking:
    return mask_patches(torch.rand(count, PATCHES), ratio)


def cut(image: Tensor, place: int) -> Tensor:
    """One patch of 4×2 pixels of an image 12 pixels wide, [4, 2, C]."""
    row, column = divmod(place, 6)
    return image[:, 4 * row : 4 * row + 4, 2 * column : 2 * column + 2].permute(1, 2, 0)


# Masking


def test_patches_with_the_most_noise_are_hidden() -> None:
    noise = torch.rand(5, PATCHES)
    visible, hidden = mask_patches(noise, 0.75)
    assert (visible.shape, hidden.shape) == ((5, 3), (5, 9))
    assert torch.equal(torch.cat([visible, hidden], 1).sort(1).values, torch.arange(PATCHES).expand(5, -1))
    assert (noise.gather(1, visible).amax(1) < noise.gather(1, hidden).amin(1)).all()


def test_patches_are_hidden_equally_often() -> None:
    hidden = mask_patches(torch.rand(4000, PATCHES), 0.75).hidden
    share = F.one_hot(hidden, PATCHES).sum((0, 1)) / 4000
    torch.testing.assert_close(share, torch.full((PATCHES,), 0.75), atol=0.04, rtol=0)  # six standard deviations


@pytest.mark.parametrize(("ratio", "hidden"), [(0.01, 0), (0.97, 12)])
def test_something_is_hidden_and_something_visible(ratio: float, hidden: int) -> None:
    with pytest.raises(ValueError, match=rf"mask_ratio {ratio} hides {hidden} of 12 patches"):
        masks(ratio=ratio)


# Encoding


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_nothing_hidden_it_is_the_whole_model(layout: str) -> None:
    model, image = encoder(**LAYOUTS[layout]), images()
    everything = torch.rand(3, PATCHES).argsort(1)
    expected = model.forward_features(image)
    prefix = model.num_prefix_tokens
    found = encode_visible(model, image, everything)
    torch.testing.assert_close(found[:, :prefix], expected[:, :prefix])
    shuffled = expected[:, prefix:].gather(1, everything[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(found[:, prefix:], shuffled)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_encode_visible_is_the_model_with_masked_attention(layout: str) -> None:
    model, image, masking = encoder(**LAYOUTS[layout]), images(), masks()
    prefix = model.num_prefix_tokens
    seen = torch.ones(3, prefix + PATCHES, dtype=torch.bool)
    seen[:, prefix:].scatter_(1, masking.hidden, False)
    expected = model.forward_features(image, attn_mask=seen[:, None, None])
    places = torch.cat([torch.arange(prefix).expand(3, -1), prefix + masking.visible], 1)
    found = encode_visible(model, image, masking.visible)
    torch.testing.assert_close(found, expected.gather(1, places[..., None].expand(-1, -1, 24)))


# Decoding


def test_targets_are_pixels_of_hidden_patches_at_mean_0_and_variance_1() -> None:
    image, masking = images(), masks()
    found = hidden_patches(image, masking, (4, 2))
    assert found.shape == (3, 9, 4 * 2 * 3)
    for each, places, targets in zip(image, masking.hidden.tolist(), found, strict=True):
        for place, target in zip(places, targets, strict=True):
            patch = cut(each, place).flatten()
            torch.testing.assert_close(target, (patch - patch.mean()) / torch.sqrt(patch.var() + 1e-6))


def test_patches_of_one_colour_are_zeros() -> None:
    assert hidden_patches(torch.full((1, 3, 8, 12), 0.7), masks(1), (4, 2)).abs().max() < 1e-3


def test_patches_are_rows_of_rows() -> None:
    image = images(1, channels=2)
    expected = [cut(image[0], place).flatten() for place in range(PATCHES)]
    torch.testing.assert_close(patchify(image, (4, 2))[0], torch.stack(expected))


def test_true_pixels_fill_the_holes() -> None:
    image, masking = images(), masks()
    torch.testing.assert_close(
        fill_hidden(image, masking, (4, 2), hidden_patches(image, masking, (4, 2))), image, atol=1e-5, rtol=0
    )
    holes = fill_hidden(image, masking, (4, 2), None)
    for place in range(PATCHES):
        hidden = place in masking.hidden[0]
        assert torch.equal(cut(holes[0], place), cut(image[0], place) * (not hidden))


def test_prediction_depends_on_its_position_and_not_on_hidden_pixels() -> None:
    model, image, masking = encoder(), images(), masks()
    decoder = MaskedDecoder(model, 16, 2, 2).eval()
    predicted = decoder(encode_visible(model, image, masking.visible), masking)
    assert predicted.shape == (3, 9, 24)
    other = torch.rand(3, 9).argsort(1)
    shuffled = Masking(masking.visible.flip(1), masking.hidden.gather(1, other))
    changed = fill_hidden(image, masking, (4, 2), torch.randn(3, 9, 24))
    found = decoder(encode_visible(model, changed, shuffled.visible), shuffled)
    torch.testing.assert_close(found, predicted.gather(1, other[..., None].expand(-1, -1, 24)))
    assert (predicted[:, 0] - predicted[:, 1]).abs().max() > 1e-3


def test_parameters_all_receive_a_gradient_and_the_loss_falls() -> None:
    model = encoder().train()
    # Each is brighter towards one side, which few patches tell.
    image = torch.randn(8, 3, 1, 1) * torch.linspace(-1, 1, 8)[:, None] + torch.zeros(12)
    decoder = MaskedDecoder(model, 16, 1, 2)
    parameters = dict(model.named_parameters()) | {f"decoder.{k}": v for k, v in decoder.named_parameters()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=3e-3)
    losses = []
    for _ in range(60):
        masking = masks(8)
        predicted = decoder(encode_visible(model, image, masking.visible), masking)
        loss = F.mse_loss(predicted, hidden_patches(image, masking, decoder.patch_size))
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if len(losses) == 1:
            assert [name for name, x in parameters.items() if x.grad is None or not x.grad.any()] == []
        optimizer.step()
    # Of pixels with mean 0 and variance 1, where nothing is known yet.
    assert losses[0] == pytest.approx(1, abs=0.1)
    assert losses[-1] < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 18}, "decoder_dim must be a multiple of 4 and of decoder_num_heads 3, got 18"),
        ({"dim": 16}, "of decoder_num_heads 3, got 16"),
        ({"num_heads": 0}, "decoder_num_heads 0"),
        ({"depth": 0}, "decoder_depth must be at least 1, got 0"),
    ],
    ids=str,
)
def test_decoders_that_cannot_be(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedDecoder(encoder(), **options)


def test_unfit_encoders_are_refused() -> None:
    assert isinstance(check_encoder(encoder(), "x", (8, 12)), VisionTransformer)
    with pytest.raises(ValueError, match="test_resnet is no VisionTransformer of timm on patches"):
        check_encoder(timm.create_model("test_resnet"), "test_resnet", (32, 32))
    with pytest.raises(ValueError, match=r"x takes images of 8×12 pixels, the data have 32×32: pass --data.img_size"):
        check_encoder(encoder(), "x", (32, 32))
    with pytest.raises(ValueError, match="images of 9×12 pixels are not whole patches of 4×2"):
        check_encoder(encoder(img_size=(9, 12)), "x", (9, 12))


# timm's contract, for the small ViT


def test_config_is_true() -> None:
    model = timm.create_model(NAME)
    cfg = model.pretrained_cfg
    assert type(model) is VisionTransformer
    assert timm.list_models("vit_pico*") == [NAME]
    assert model.forward_features(torch.randn(1, *cfg["input_size"])).shape == (1, 65, 192)
    assert model.num_classes == cfg["num_classes"] == 10
    assert model.get_submodule(cfg["first_conv"]).weight.shape[1] == 3
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert cfg["license"]
    # Twelve D² and thirteen D per block, patches of 48 pixels, class token, positions, norm and head.
    blocks = 6 * (12 * 192**2 + 13 * 192)
    assert sum(x.numel() for x in model.parameters()) == blocks + 192 * (48 + 1 + 1 + 65 + 2) + 192 * 10 + 10


def test_options_channels_and_size() -> None:
    model = timm.create_model(NAME, in_chans=1, num_classes=3, global_pool="avg", depth=2, img_size=48)
    assert model(torch.randn(2, 1, 48, 48)).shape == (2, 3)
    model.set_input_size((32, 24))
    assert model(torch.randn(2, 1, 32, 24)).shape == (2, 3)
    with pytest.raises(TypeError, match="no_such_option"):
        timm.create_model(NAME, no_such_option=1)


def test_classifier_can_change() -> None:
    model = timm.create_model(NAME).eval()
    x = torch.randn(2, 3, 32, 32)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)


def test_intermediates_and_features_only() -> None:
    model = timm.create_model(NAME).eval()
    x = torch.randn(2, 3, 32, 32)
    features, levels = model.forward_intermediates(x)
    torch.testing.assert_close(features, model.forward_features(x))
    assert [tuple(level.shape) for level in levels] == [(2, 192, 8, 8)] * 6
    backbone = timm.create_model(NAME, features_only=True)
    shapes = [(level.shape[1], 32 // level.shape[2]) for level in backbone(x)]
    assert shapes == list(zip(backbone.feature_info.channels(), backbone.feature_info.reduction(), strict=True))


def test_gradient_checkpointing_gives_the_same() -> None:
    model = timm.create_model(NAME, num_classes=3, depth=2)
    x = torch.randn(2, 3, 32, 32)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


def test_layer_decay_meta_device_and_dtype() -> None:
    model = timm.create_model(NAME, device=torch.device("meta"), dtype=torch.bfloat16)
    assert {(x.device.type, x.dtype) for x in model.parameters()} == {("meta", torch.bfloat16)}
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5).param_groups
    assert len({group["lr_scale"] for group in groups}) == 8  # stem, six blocks, head
    decayed = {id(x) for group in groups if group["weight_decay"] for x in group["params"]}
    assert not {id(model.pos_embed), id(model.cls_token)} & decayed
