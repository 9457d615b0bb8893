"""Models of timm at sizes for images of 32 pixels and for CPUs: what the others build on, and are compared with."""

from functools import partial
from typing import Any, cast

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import HybridEmbed
from timm.models import generate_default_cfgs
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from timm.models.vision_transformer_hybrid import ConvStem
from torch import nn

from visionattn.models._configs import register_variants
from visionattn.models._weights import build_model, build_vit, packaged

__all__ = ["SmallImageResNet"]


class SmallImageResNet(ResNet):
    """timm's ResNet without the pooling after the first convolution: maps are twice as large throughout.

    With `small_stem` the first convolution is 3x3 with stride 1, and maps are twice as large again.
    """

    def __init__(self, *args: Any, small_stem: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.maxpool = nn.Sequential()
        levels: list[Any] = self.feature_info
        for level in levels[1:]:
            level["reduction"] //= 2
        if small_stem:
            first = cast("nn.Conv2d", self.conv1)
            dd: dict[str, Any] = {"device": first.weight.device, "dtype": first.weight.dtype}
            self.add_module("conv1", nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=False, **dd))
            for level in levels:
                level["reduction"] //= 2


def conv_embed(patch_size: int, in_chans: int, embed_dim: int, **kwargs: Any) -> HybridEmbed:
    """Build a patch embedding of three 3x3 convolutions, for patches of 4 pixels (Xiao et al., 2021).

    Source: "Early Convolutions Help Transformers See Better", NeurIPS 2021, https://arxiv.org/abs/2106.14881. Its stems
    have more convolutions.

    Args:
        patch_size: Side of a patch.
        in_chans: Channels of an image.
        embed_dim: Width of the tokens; the convolutions before the last have a quarter and half of it.
        **kwargs: Options of timm's HybridEmbed.

    Raises:
        ValueError: Patches have another size.
    """
    if patch_size != 4:
        raise ValueError(f"the convolutional stem makes patches of 4 pixels; patch_size is {patch_size}")
    dd: dict[str, Any] = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
    stem = ConvStem(in_chans, channels=embed_dim, stride=(1, 2, 2), **dd)
    return HybridEmbed(stem, in_chans=in_chans, embed_dim=embed_dim, proj=False, **kwargs)


_CFG: dict[str, Any] = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "license": "apache-2.0",
}
VIT_CFG: dict[str, Any] = {
    **_CFG,
    "fixed_input_size": True,
    "pool_size": None,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
VIT_STEM_CFG: dict[str, Any] = {**VIT_CFG, "first_conv": "patch_embed.backbone.0.conv"}
_RESNET_CFG: dict[str, Any] = {**_CFG, "first_conv": "conv1", "classifier": "fc"}

default_cfgs = generate_default_cfgs(
    {
        "vit_pico_patch4_32.untrained": VIT_CFG,
        "vit_nano_patch4_32.cifar10": {**VIT_CFG, **packaged("vit_nano_patch4_32.cifar10")},
        "vit_nano_stem.untrained": VIT_STEM_CFG,
        "resnet_pico.cifar10": {**_RESNET_CFG, "pool_size": (2, 2), **packaged("resnet_pico.cifar10")},
        "resnet14_pico.untrained": {**_RESNET_CFG, "pool_size": (4, 4)},
    }
)

VIT_32: dict[str, Any] = {"img_size": 32, "patch_size": 4, "depth": 6}
VIT_PICO: dict[str, Any] = {**VIT_32, "embed_dim": 192, "num_heads": 3}
VIT_NANO: dict[str, Any] = {**VIT_32, "embed_dim": 96, "num_heads": 3}
VIT_NANO_STEM: dict[str, Any] = {**VIT_NANO, "embed_layer": conv_embed}
_RESNET_PICO: dict[str, Any] = {"block": BasicBlock, "layers": (2, 2, 2, 2), "channels": (16, 32, 64, 96)}
_RESNET14_PICO: dict[str, Any] = {
    "block": BasicBlock,
    "layers": (1, 2, 2, 1),
    "channels": (32, 64, 96, 96),
    "small_stem": True,
}

register_variants(
    __name__,
    partial(build_vit, VisionTransformer, filter_fn=checkpoint_filter_fn),
    {
        "vit_pico_patch4_32": ("A ViT of our own making: six blocks of ViT-Tiny's width.", VIT_PICO),
        "vit_nano_patch4_32": ("A ViT of our own making: six blocks of width 96.", VIT_NANO),
        "vit_nano_stem": ("ViT-Nano with a stem of three convolutions.", VIT_NANO_STEM),
    },
)

register_variants(
    __name__,
    partial(build_model, SmallImageResNet, features={"out_indices": (0, 1, 2, 3, 4)}),
    {
        "resnet_pico": ("A ResNet of our own making: ResNet-18 with 16 to 96 channels.", _RESNET_PICO),
        "resnet14_pico": (
            "A ResNet of our own making: 14 layers with 32 to 96 channels, and a 3x3 convolution of stride 1 as stem.",
            _RESNET14_PICO,
        ),
    },
)
