"""DCAL: vision transformers of timm with dual cross-attention, for fine-grained classes and identities.

Beside self-attention (SA), training has global-local cross-attention (GLCA), one block of its own that looks at an
image from its class token and the patches that matter most to it, and pair-wise cross-attention (PWCA), which shares
all weights with SA and mixes the keys and values of another image in. Inference takes SA and GLCA, or SA alone; PWCA
costs nothing then. Weights of timm's backbones load unchanged; GLCA starts as a copy of their last block.

What of timm's contract cannot hold: without a classifier, a model with GLCA gives the features of both branches side by
side, `head_hidden_size` of them, twice `num_features`.

Source: Zhu et al., "Dual Cross-Attention Learning for Fine-Grained Visual Categorization and Object
Re-Identification", CVPR 2022, https://arxiv.org/abs/2205.02151. The authors published no code.
"""

from functools import partial
from typing import Any

from timm.layers import StdConv2dSame
from timm.models import generate_default_cfgs, register_model
from timm.models.resnetv2 import ResNetV2
from timm.models.swin_transformer import checkpoint_filter_fn as swin_filter_fn
from timm.models.vision_transformer_hybrid import HybridEmbed

from visionattn.models._configs import configs_like, register_variants
from visionattn.models._dcal_swin import DcalSwinTransformer
from visionattn.models._dcal_vit import DcalVisionTransformer, checkpoint_filter_fn
from visionattn.models._weights import build_model, build_vit, packaged
from visionattn.models.controls import VIT_32, VIT_CFG, VIT_NANO, VIT_NANO_STEM, VIT_STEM_CFG

__all__ = ["DcalSwinTransformer", "DcalVisionTransformer"]

PAPER: dict[str, Any] = {
    "paper_ids": "arXiv:2205.02151",
    "paper_name": ("Dual Cross-Attention Learning for Fine-Grained Visual Categorization and Object Re-Identification"),
}


_HEADS: dict[str, Any] = {"classifier": ("head", "glca_head"), **PAPER}
_PICO: dict[str, Any] = {**VIT_CFG, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), **_HEADS}

default_cfgs = generate_default_cfgs(
    {
        **configs_like(
            "dcal_",
            _HEADS,
            "deit_tiny_patch16_224",
            "deit_small_patch16_224",
            "deit_base_patch16_224",
            "vit_small_patch16_224",
            "vit_base_patch16_224",
            "vit_base_r50_s16_224",
        ),
        **configs_like(
            "dcal_",
            {**PAPER, "classifier": "head.fc"},
            *(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")),
        ),
        "dcal_vit_nano.cifar10": {**_PICO, **packaged("dcal_vit_nano.cifar10")},
        "dcal_vit_nano_stem.untrained": {**VIT_STEM_CFG, **_HEADS},
        "dcal_vit_pico": _PICO,
    }
)

_create_vit = partial(build_vit, DcalVisionTransformer, filter_fn=checkpoint_filter_fn)

_TINY: dict[str, Any] = {"embed_dim": 192, "num_heads": 3}
_SMALL: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
_BASE: dict[str, Any] = {"embed_dim": 768, "num_heads": 12}
_SWIN: dict[str, Any] = {"patch_size": 4, "window_size": 7}

register_variants(
    __name__,
    _create_vit,
    {
        "dcal_deit_tiny_patch16_224": ("DCAL on DeiT-Tiny.", _TINY),
        "dcal_deit_small_patch16_224": ("DCAL on DeiT-Small.", _SMALL),
        "dcal_deit_base_patch16_224": ("DCAL on DeiT-Base.", _BASE),
        "dcal_vit_small_patch16_224": ("DCAL on ViT-Small; the paper has none.", _SMALL),
        "dcal_vit_base_patch16_224": ("DCAL on ViT-Base.", _BASE),
        "dcal_vit_pico": (
            "DCAL for small images, of our own making: six blocks of width 128 on patches of 4 pixels.",
            {**VIT_32, "embed_dim": 128, "num_heads": 4},
        ),
        "dcal_vit_nano": ("DCAL on `vit_nano_patch4_32`: six blocks of width 96.", VIT_NANO),
        "dcal_vit_nano_stem": ("DCAL on `vit_nano_stem`, whose weights it takes.", VIT_NANO_STEM),
    },
)


@register_model
def dcal_vit_base_r50_s16_224(pretrained: bool = False, **kwargs: Any) -> DcalVisionTransformer:
    """DCAL on the hybrid of the first stages of ResNet-50 and ViT-Base."""
    backbone = ResNetV2(
        layers=[3, 4, 9],
        num_classes=0,
        global_pool="",
        in_chans=kwargs.get("in_chans", 3),
        preact=False,
        stem_type="same",
        conv_layer=partial(StdConv2dSame, eps=1e-8),
        device=kwargs.get("device"),
        dtype=kwargs.get("dtype"),
    )
    arch = {**_BASE, "patch_size": 1, "embed_layer": partial(HybridEmbed, backbone=backbone), **kwargs}
    return _create_vit("dcal_vit_base_r50_s16_224", pretrained, **arch)


register_variants(
    __name__,
    partial(
        build_model,
        DcalSwinTransformer,
        filter_fn=swin_filter_fn,
        features={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
    ),
    {
        "dcal_swin_tiny_patch4_window7_224": (
            "PWCA on Swin-Tiny.",
            {**_SWIN, "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
        ),
        "dcal_swin_small_patch4_window7_224": (
            "PWCA on Swin-Small.",
            {**_SWIN, "embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
        ),
        "dcal_swin_base_patch4_window7_224": (
            "PWCA on Swin-Base.",
            {**_SWIN, "embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
        ),
    },
)
