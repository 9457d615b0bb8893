"""Slot autoencoders: positions, decoders, what is rebuilt, and that they learn."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import visionattn  # noqa: F401  registers the models
from visionattn.models.slots import (
    BroadcastDecoder,
    Decomposition,
    LearnedPosition,
    SlotAutoencoder,
    SoftPosition,
    encode,
)

FEATURES = (6, 4, 3)
SMALL: dict[str, Any] = {"num_slots": 3, "slot_dim": 8, "slot_hidden_dim": 8, "decoder_dim": 8}
FAST: dict[str, Any] = {"decoder_grid": 4, "decoder_strides": (1,), "decoder_kernel": 1, "decoder_patch": 2}


def features(batch: int = 2) -> Tensor:
    return torch.randn(batch, *FEATURES)


# Parts


def test_soft_position_is_the_distance_from_each_edge() -> None:
    position = SoftPosition(4, (3, 5))
    with torch.no_grad():
        position.project.weight.copy_(torch.eye(4))
        position.project.bias.zero_()
        found = position()
    assert found.shape == (3, 5, 4)
    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]))  # top, left, bottom, right
    torch.testing.assert_close(found[2, 1], torch.tensor([1.0, 0.25, 0.0, 0.75]))
    assert not position.state_dict().keys() & {"distances"}


@pytest.mark.parametrize(
    ("strides", "kernel_size", "patch_size", "size"),
    [((2, 2, 2, 1), 5, 1, (32, 24)), ((1, 1), 1, 2, (8, 6)), ((3,), 3, 1, (12, 9)), ((), 1, 3, (12, 9))],
)
def test_decoders_draw_in_the_size_that_they_say(
    strides: tuple[int, ...], kernel_size: int, patch_size: int, size: tuple[int, int]
) -> None:
    decoder = BroadcastDecoder(8, 3, SoftPosition(8, (4, 3)), 5, strides, kernel_size, patch_size)
    parts, logits = decoder(torch.randn(2, 7, 8))
    assert decoder.size == size
    assert (parts.shape, logits.shape) == ((2, 7, 3, *size), (2, 7, *size))


def test_slots_are_drawn_one_by_one() -> None:
    decoder = BroadcastDecoder(8, 3, SoftPosition(8, (4, 4)), 5, (2, 1), 3, 1)
    slots = torch.randn(2, 3, 8)
    parts, logits = decoder(slots)
    alone = decoder(slots[1:, 2:])
    torch.testing.assert_close((parts[1:, 2:], logits[1:, 2:]), alone)


def test_kernels_of_one_place_are_an_mlp_for_each() -> None:
    position = LearnedPosition(8, (2, 3))
    decoder: Any = BroadcastDecoder(8, 4, position, 5, (1, 1, 1), 1, 1)
    slots = torch.randn(1, 2, 8)
    x = slots[0, 1] + position.table[1, 2]
    linear = [layer for layer in decoder.layers if isinstance(layer, nn.Conv2d)]
    for layer in linear[:-1]:
        x = F.relu(layer.weight[:, :, 0, 0] @ x + layer.bias)
    x = linear[-1].weight[:, :, 0, 0] @ x + linear[-1].bias
    parts, logits = decoder(slots)
    torch.testing.assert_close(parts[0, 1, :, 1, 2], x[:4])
    torch.testing.assert_close(logits[0, 1, 1, 2], x[4])


# Autoencoders


@pytest.mark.parametrize("method", ["slot_attention", "dinosaur"])
def test_reconstruction_is_the_sum_of_masked_parts(method: Any) -> None:
    model = SlotAutoencoder(FEATURES, method, **SMALL, **FAST)
    found = model(features())
    size, channels = ((8, 8), 3) if method == "slot_attention" else ((4, 3), 6)
    assert found.slots.shape == (2, 3, 8)
    assert found.attention.shape == (2, 3, 4, 3)
    assert found.masks.shape == (2, 3, *size)
    assert found.parts.shape == (2, 3, channels, *size)
    torch.testing.assert_close(found.masks.sum(1), torch.ones(2, *size))
    expected = torch.einsum("bkhw,bkchw->bchw", found.masks, found.parts)
    torch.testing.assert_close(found.reconstruction, expected)


def test_widths_match_the_papers() -> None:
    plain, dinosaur = SlotAutoencoder((64, 16, 16)), SlotAutoencoder((384, 14, 14), "dinosaur")
    assert (plain.slot_attention.dim, plain.slot_attention.mlp[0].out_features, plain.decoder.size) == (
        64,
        128,
        (64, 64),
    )
    assert (dinosaur.slot_attention.dim, dinosaur.slot_attention.mlp[0].out_features, dinosaur.decoder.size) == (
        256,
        1024,
        (14, 14),
    )
    assert [layer.weight.shape[:2] for layer in dinosaur.decoder.layers if isinstance(layer, nn.Conv2d)] == [
        *((2048, 256), (2048, 2048), (2048, 2048)),
        (385, 2048),
    ]
    assert isinstance(dinosaur.decoder.position, LearnedPosition)
    assert dinosaur.position is None


def test_target_is_the_image_or_the_features() -> None:
    image, held = torch.randn(2, 3, 16, 16), features()
    assert SlotAutoencoder(FEATURES, "dinosaur", **SMALL).target(image, held) is held
    small = SlotAutoencoder(FEATURES, **SMALL, **FAST)
    torch.testing.assert_close(small.target(image, held), F.avg_pool2d(image, 2))
    same = torch.randn(2, 3, 8, 8)
    assert small.target(same, held) is same


def test_segments_are_the_slots_with_the_largest_masks() -> None:
    masks = torch.zeros(1, 3, 2, 2)
    masks[0, 2, 0], masks[0, 1, 1] = 1.0, 1.0
    found = Decomposition(masks, masks, masks, masks).segments((4, 4))
    assert found.tolist() == [[[2] * 4] * 2 + [[1] * 4] * 2]


def test_guided_masks_equal_attention_times_decoder_masks() -> None:
    torch.manual_seed(1)
    options: dict[str, Any] = {**SMALL, "decoder_grid": 4, "decoder_strides": (1,), "decoder_kernel": 1}
    plain = SlotAutoencoder((6, 4, 4), **options).eval()
    guided = SlotAutoencoder((6, 4, 4), guided=True, **options).eval()
    guided.load_state_dict(plain.state_dict())
    x = torch.randn(2, 6, 4, 4)
    found, free = guided(x), plain(x)
    product = found.attention * free.masks
    torch.testing.assert_close(found.masks, product / product.sum(1, keepdim=True))
    torch.testing.assert_close(found.parts, free.parts)


@pytest.mark.parametrize("method", ["slot_attention", "dinosaur"])
def test_parameters_all_receive_a_gradient(method: Any) -> None:
    model = SlotAutoencoder(FEATURES, method, **SMALL)
    x = features()
    found = model(x)
    F.mse_loss(found.reconstruction, torch.randn_like(found.reconstruction)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_images_do_not_depend_on_their_batch() -> None:
    model, x = SlotAutoencoder(FEATURES, **SMALL).eval(), features(3)
    torch.testing.assert_close(model(x).masks[1:2], model(x[1:2]).masks, atol=1e-5, rtol=1e-4)


def test_two_colours_come_apart() -> None:
    torch.manual_seed(0)
    # A square of one colour on a ground of another, both drawn at random.
    image = torch.rand(32, 3, 1, 1).expand(-1, -1, 8, 8).clone()
    image[:16, :, 2:6, :4] = torch.rand(16, 3, 1, 1)
    image[16:, :, 2:6, 4:] = torch.rand(16, 3, 1, 1)
    encoder = nn.Conv2d(3, 8, 1)
    model = SlotAutoencoder(
        (8, 8, 8), **{**SMALL, "num_slots": 2}, guided=True, decoder_grid=8, decoder_strides=(1,), decoder_kernel=1
    )
    optimizer = torch.optim.Adam([*encoder.parameters(), *model.parameters()], lr=1e-2)
    for _ in range(150):
        found = model(encoder(image))
        loss = F.mse_loss(found.reconstruction, image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    segments = model(encoder(image)).segments((8, 8))
    square = torch.zeros(32, 8, 8, dtype=torch.bool)
    square[:16, 2:6, :4], square[16:, 2:6, 4:] = True, True
    same = ((segments == 1) == square).float().mean((1, 2))
    assert torch.maximum(same, 1 - same).mean() > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "slate"}, "method must be one of slot_attention, dinosaur, got 'slate'"),
        ({"num_slots": 0}, "num_slots must be at least 1, got 0"),
        ({"slot_dim": 0}, "slot_dim must be at least 1, got 0"),
        ({"decoder_patch": 0}, "decoder_patch must be at least 1, got 0"),
        ({"decoder_kernel": 4}, "decoder_kernel must be an odd number, got 4"),
        ({"decoder_strides": (2, 0)}, r"must be at least 1 and at most decoder_kernel 5, got \[2, 0\]"),
        ({"decoder_strides": (4,), "decoder_kernel": 3}, r"at most decoder_kernel 3, got \[4\]"),
    ],
    ids=str,
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlotAutoencoder(FEATURES, **options)


# Encoders


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("slot_cnn_pico", {}, (64, 8, 8)),
        ("nat_pico", {}, None),
        ("test_vit", {"img_size": 32}, (64, 2, 2)),
        ("test_resnet", {}, None),
    ],
)
def test_features_are_the_last_map_of_any_model(name: str, options: dict[str, Any], shape: Any) -> None:
    model = timm.create_model(name, num_classes=0, **options).eval()
    x = torch.randn(2, 3, 32, 32)
    found, expected = encode(model, x), model.forward_features(x)
    if expected.dim() == 3:
        expected = expected[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, found.shape[2:])
    torch.testing.assert_close(found, expected)
    assert shape is None or found.shape == (2, *shape)
    assert SlotAutoencoder(found.shape[1:], **SMALL)(found).slots.shape == (2, 3, 8)
