"""Copy scores: heads that attend to equal content, to places, and to everything."""

from typing import Any

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from tests.analysis.dense_attention import PatchNet, vit
from visionattn.analysis.copying import measure_copying
from visionattn.analysis.head_images import HeadBatch
from visionattn.analysis.heads import head_layers
from visionattn.errors import UserError
from visionattn.layers.halo_attention import HaloAttention2d
from visionattn.layers.mixers.full import FullAttention2d
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d

DIM = 48
"""Channels of a patch of 4×4 pixels."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def noise(count: int = 32, size: tuple[int, int] = (32, 24)) -> list[HeadBatch]:
    return [HeadBatch(part, None, [""] * len(part)) for part in torch.randn(count, 3, *size).split(16)]


def on_pixels(layer: Any, *, channels_first: bool = False, scale: float = 1.0) -> PatchNet:
    """Return a network whose tokens are pixels, and whose queries and keys are the tokens, times a scale."""
    network = PatchNet(layer, DIM, channels_first=channels_first).eval()
    network.patchify.weight.data = torch.eye(DIM).view(DIM, 3, 4, 4)
    network.patchify.bias.data.zero_()  # type: ignore[union-attr]
    for name, values in layer.named_parameters():
        if "norm" not in name:
            values.data.zero_()
    same = scale * torch.eye(DIM)
    if channels_first:
        layer.q.weight.data[:, :, 0, 0] = same
        layer.kv.weight.data.view(2, 2, -1, DIM)[:, 0] = same.view(2, -1, DIM)
    else:
        attention = getattr(layer, "attn", layer)
        attention.qkv.weight.data[: 2 * DIM] = torch.cat([same, same])
    return network


LAYERS: dict[str, Any] = {
    "full": lambda: on_pixels(FullAttention2d(DIM, 2)),
    "window": lambda: on_pixels(NeighborhoodAttention2d(DIM, 2, 3)),
    "dilated": lambda: on_pixels(NeighborhoodAttention2d(DIM, 2, 3, 2)),
    "shifted": lambda: on_pixels(SwinTransformerBlock(DIM, (8, 6), 2, window_size=4, shift_size=2)),
    "halo": lambda: on_pixels(HaloAttention2d(DIM, None, 2, None, 2, 1), channels_first=True),
    "strided": lambda: on_pixels(HaloAttention2d(DIM, None, 2, None, 4, 1, 2), channels_first=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_heads_that_compare_content_find_each_copy(name: str) -> None:
    network = LAYERS[name]()
    found = measure_copying(network, head_layers(network), noise())
    assert list(found) == [(0, 0), (0, 1)]
    assert all(values["copy"] > 0.97 for values in found.values())


@pytest.mark.parametrize("name", LAYERS)
def test_uniform_heads_find_no_copies(name: str) -> None:
    network = LAYERS[name]()
    for values in network.layer.parameters():
        values.data.zero_()
    found = measure_copying(network, head_layers(network), noise(256))
    assert all(abs(values["copy"]) < 0.1 for values in found.values())


def test_heads_that_prefer_a_place_find_no_copies() -> None:
    network: Any = on_pixels(NeighborhoodAttention2d(DIM, 2, 5), scale=0)
    network.layer.rpb.data[0, 4, 5] = network.layer.rpb.data[1, 3, 3] = 10  # the next place; the one above on the left
    found = measure_copying(network, head_layers(network), noise(512))
    assert all(abs(values["copy"]) < 0.05 for values in found.values())


def test_large_maps_have_copies_in_the_middle() -> None:
    network = on_pixels(FullAttention2d(DIM, 2))
    images = noise(4, (8, 4 * 40))
    seen: list[Tensor] = []
    network.patchify.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    found = measure_copying(network, head_layers(network), images)
    assert all(values["copy"] == 1 for values in found.values())
    (changed,) = (seen[1] != images[0].image).any(1).any(1).nonzero()[:, 1:].unique(dim=0).unbind(1)
    assert 4 * 4 <= changed.min() <= changed.max() < 4 * 36


def test_one_patch_of_each_image_is_copied() -> None:
    network: Any = vit(img_size=20)
    images = noise(3, (20, 20))
    seen: list[Tensor] = []
    network.patch_embed.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    measure_copying(network, head_layers(network), images)
    assert [len(each) for each in seen] == [1, 3]  # one pass for both layers, after one image that shows the grid
    before, after = (
        x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
        for x in (images[0].image, seen[1])
    )
    for old, new in zip(before, after, strict=True):
        (twin,) = (old != new).any(-1).nonzero()[:, 0].tolist()
        assert (old == new[twin]).all(-1).sum() == 1


def test_layers_with_the_same_windows_share_a_pass() -> None:
    layers = [NeighborhoodAttention2d(DIM, 2, 3, dilation) for dilation in (1, 2, 1, 2, 1)]
    network = PatchNet(nn.Sequential(*layers), DIM).eval()
    passes: list[int] = []
    network.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    found = measure_copying(network, head_layers(network), noise(20))
    assert passes == [1, 16, 16, 4, 4]
    assert len(found) == 10


def test_seed_decides_about_the_places() -> None:
    network = timm.create_model("vit_nano_patch4_32").eval()
    images, layers = noise(32, (32, 32)), head_layers(network)
    found = measure_copying(network, layers, images)
    assert measure_copying(network, layers, images) == found
    assert measure_copying(network, layers, images, seed=1) != found


def test_windows_without_three_places_have_no_score() -> None:
    layers = nn.Sequential(NeighborhoodAttention2d(DIM, 2, (1, 2)), FullAttention2d(DIM, 2))
    network = PatchNet(layers, DIM).eval()
    found = measure_copying(network, head_layers(network), noise(4))
    assert [values["copy"] is None for values in found.values()] == [True, True, False, False]
    found = measure_copying(network, head_layers(network), noise(4, (4, 8)))
    assert all(values["copy"] is None for values in found.values())


def test_no_images_are_an_error() -> None:
    with pytest.raises(UserError, match="no images"):
        measure_copying(nn.Identity(), [], [])
