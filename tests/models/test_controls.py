"""Models of timm's classes at sizes for small images."""

from itertools import pairwise

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from visionattn.models import SmallImageResNet
from visionattn.models._dcal_vit import checkpoint_filter_fn


def vit_parameters(width: int, depth: int = 6, patches: int = 64, classes: int = 10) -> int:
    """Blocks, patch embedding, class token with positions, last norm, head."""
    blocks = depth * (12 * width**2 + 13 * width)
    return blocks + (3 * 16 + 1) * width + (patches + 2) * width + 2 * width + (width + 1) * classes


def resnet_parameters(layers: tuple[int, ...], channels: tuple[int, ...], classes: int = 10) -> int:
    """Stem, stages and head; the first block of a stage has a 1x1 shortcut. Two numbers per normed channel."""
    before = (64, *channels[:-1])
    first = sum(
        9 * width * (last + width) + last * width + 6 * width for last, width in zip(before, channels, strict=True)
    )
    others = sum((count - 1) * (18 * width**2 + 4 * width) for count, width in zip(layers, channels, strict=True))
    return 3 * 9 * 64 + 2 * 64 + first + others + (channels[-1] + 1) * classes


def stem_parameters(width: int) -> int:
    """Three 3x3 convolutions from 3 channels to `width`; the last one has a bias, the others a norm."""
    channels = (3, width // 4, width // 2, width)
    kernels = sum(9 * before * after for before, after in pairwise(channels))
    return kernels + 2 * (width // 4 + width // 2) + width


SIZES = {
    "vit_pico_patch4_32": vit_parameters(192),
    "vit_nano_patch4_32": vit_parameters(96),
    "vit_nano_stem": vit_parameters(96) - (3 * 16 + 1) * 96 + stem_parameters(96),
    "resnet_pico": 503_850,
    "resnet14_pico": resnet_parameters((1, 2, 2, 1), (32, 64, 96, 96)),
}


@pytest.mark.parametrize("name", SIZES)
def test_size_and_configuration(name: str) -> None:
    model = timm.create_model(name).eval()
    assert isinstance(model, VisionTransformer | SmallImageResNet)
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name]
    cfg = model.pretrained_cfg
    assert model.get_submodule(cfg["first_conv"]).weight.shape[1] == 3
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model(torch.randn(2, *cfg["input_size"])).shape == (2, cfg["num_classes"]) == (2, 10)
    assert timm.create_model(name, num_classes=3, in_chans=1)(torch.randn(2, 1, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "reductions"), [("resnet_pico", [2, 2, 4, 8, 16]), ("resnet14_pico", [1, 1, 2, 4, 8])]
)
@pytest.mark.parametrize("size", [32, 48])
def test_maps_of_the_resnet_are_as_large_as_it_says(name: str, reductions: list[int], size: int) -> None:
    model = timm.create_model(name, features_only=True).eval()
    maps = model(torch.randn(1, 3, size, size))
    assert [(m.shape[1], size // m.shape[2]) for m in maps] == list(
        zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    )
    assert model.feature_info.reduction() == reductions


def test_a_vit_with_a_stem_gives_dcal_its_weights() -> None:
    vit, dcal = timm.create_model("vit_nano_stem").eval(), timm.create_model("dcal_vit_nano_stem").eval()
    dcal.load_state_dict(checkpoint_filter_fn(vit.state_dict(), dcal))
    dcal.set_inference("sa")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(dcal(x), vit(x))
    assert vit.patch_embed.grid_size == (8, 8)


def test_the_stem_makes_patches_of_four_pixels() -> None:
    with pytest.raises(ValueError, match="patches of 4 pixels; patch_size is 2"):
        timm.create_model("vit_nano_stem", patch_size=2)
