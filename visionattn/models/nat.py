"""Neighborhood Attention Transformers: NAT, DiNAT and DiNAT_s.

Papers: "Neighborhood Attention Transformer" (Hassani et al., arXiv 2204.07143) and "Dilated Neighborhood Attention
Transformer" (Hassani and Shi, arXiv 2209.15001). A pyramid of four levels; each is a stack of pre-norm blocks of
neighborhood attention with relative bias. DiNAT is NAT whose blocks alternate dilation 1 and a level's dilation;
DiNAT_s is that in the frame of Swin: patches side by side, merged in 2x2 squares.

Published weights load in every layout, see `_nat_checkpoints`. Their URLs are those of the authors' code; we have
never tested them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from visionattn.layers.mixers import create_mixer
from visionattn.layers.neighborhood_attention import KernelSize
from visionattn.models._configs import image_config, register_variants
from visionattn.models._mixing import Mixer, MixerOptions, block_mixers
from visionattn.models._nat_blocks import (
    Block,
    ConvDownsample,
    ConvEmbed,
    ConvStem,
    Dilation,
    LayerNorm2d,
    Level,
    PatchEmbed,
    PatchMerging,
    block_dilations,
    init_weights,
)
from visionattn.models._nat_checkpoints import checkpoint_filter_fn
from visionattn.models._nat_padding import follow_padding
from visionattn.models._weights import build_pyramid, packaged
from visionattn.models.backbone import Backbone

__all__ = ["NeighborhoodAttentionTransformer"]

Dilations = Sequence[Dilation] | Literal["largest"] | None


class NeighborhoodAttentionTransformer(Backbone):
    """NAT, and DiNAT where `dilations` are given; any input size works."""

    undecayed: ClassVar[tuple[str, ...]] = ("rpb", "height_rel", "width_rel")

    def __init__(
        self,
        embed_dim: int = 64,
        depths: Sequence[int] = (3, 4, 6, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        kernel_size: KernelSize = 7,
        dilations: Dilations = None,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        embed: Literal["conv", "stem", "patch"] = "conv",
        stem_strides: tuple[int, int] = (2, 2),
        legacy_pad: bool | None = None,
        mixer: Mixer = "neighborhood",
        mixer_kwargs: MixerOptions = None,
        cpe: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the network.

        Args:
            embed_dim: Width of the first level; each level doubles it.
            depths: Blocks per level.
            num_heads: Attention heads per level.
            kernel_size: Keys per query and axis, or one number per axis.
            dilations: Per level one dilation for every second block of it (1, D, 1, D, ...), or one per block;
                "largest" for the largest with which a window fits the map (the papers' choice, at every size);
                None for 1 throughout.
            mlp_ratio: Hidden width of an MLP over its width.
            qkv_bias: Whether queries, keys and values have a bias.
            layer_scale: Initial LayerScale of a block's branches; None for no LayerScale.
            embed: "conv" for overlapping convolutions at the stem and between levels; "stem" for the same with batch
                norms and a ReLU at the stem; "patch" for patches side by side and their merging, as in DiNAT_s.
            stem_strides: Strides of the two convolutions of the stem; their product is the size of a patch.
            legacy_pad: Attend to appended zeros on maps smaller than a window, as in the training of published
                weights. Otherwise a query sees its map only. None follows the loaded weights, and uses no zeros for a
                model from scratch.
            mixer: Token mixer of the blocks, one of `visionattn.layers.mixers.MIXERS`, or several that the blocks of a
                level take in turn. Options of the model that a mixer does not have, such as `kernel_size`, do not
                apply to it.
            mixer_kwargs: Options of the mixer, or a list of them, one per name of `mixer`.
            cpe: Begin each block with a depthwise 3x3 convolution, added to its input: a conditional position
                encoding (arXiv 2102.10882).
            in_chans: Channels of an image.
            num_classes: Classes; 0 for no classifier.
            global_pool: Pooling before the classifier, as in timm ("avg", "max", ...); "" for none.
            drop_rate: Dropout before the classifier.
            proj_drop_rate: Dropout after attention projections and in MLPs.
            drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: depths, num_heads and dilations differ in their number of levels, or another word than
                those above.
        """
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        levels = len(depths)
        if len(num_heads) != levels:
            raise ValueError(f"num_heads must have one entry per level, {levels}; got {len(num_heads)}")
        if embed not in ("conv", "stem", "patch"):
            raise ValueError(f'embed must be "conv", "stem" or "patch"; got {embed!r}')
        patch_size = stem_strides[0] * stem_strides[1]
        self.patch_embed: nn.Module = (
            PatchEmbed(in_chans, embed_dim, patch_size, **dd)
            if embed == "patch"
            else (ConvEmbed if embed == "conv" else ConvStem)(in_chans, embed_dim, stem_strides, **dd)
        )
        downsample = PatchMerging if embed == "patch" else ConvDownsample
        level_dilations = _level_dilations(dilations, levels)
        shared = {
            "kernel_size": kernel_size,
            "qkv_bias": qkv_bias,
            "legacy_pad": bool(legacy_pad),
            "proj_drop": proj_drop_rate,
        }
        drop_path = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        feature_info: list[dict[str, Any]] = []
        self.levels = nn.Sequential()
        for i, depth in enumerate(depths):
            dim = embed_dim * 2**i
            blocks = []
            for (name, options), dilation in zip(
                block_mixers(mixer, mixer_kwargs, depth), block_dilations(level_dilations[i], depth), strict=True
            ):
                defaults = {**shared, "dilation": dilation}
                attn = create_mixer(name, dim, num_heads[i], defaults=defaults, **options, **dd)
                blocks.append(Block(dim, attn, mlp_ratio, layer_scale, proj_drop_rate, next(drop_path), cpe, **dd))
            self.levels.append(Level(downsample(dim // 2, **dd) if i else nn.Identity(), blocks))
            feature_info.append({"num_chs": dim, "reduction": patch_size * 2**i, "module": f"levels.{i}"})
        self.norm: nn.Module = LayerNorm2d(dim, **dd)
        self.finish(feature_info, dim, in_chans, num_classes, global_pool, drop_rate, **dd)
        self.apply(init_weights)
        follow_padding(self, legacy_pad)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images `[B, in_chans, H, W]` to normalized features `[B, num_features, H / 32, W / 32]`."""
        return self.norm(self.levels(self.patch_embed(x)))


def _level_dilations(dilations: Dilations, levels: int) -> Sequence[Dilation]:
    if dilations is None or dilations == "largest":
        return [dilations or 1] * levels
    if isinstance(dilations, str) or len(dilations) != levels:
        raise ValueError(f'dilations must be None, "largest" or one entry per level, {levels}; got {dilations!r}')
    return dilations


_SHI = "https://shi-labs.com/projects"


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return image_config(
        **{
            "pool_size": (7, 7),
            "first_conv": "patch_embed.proj.0",
            "license": "mit",
            "paper_ids": "arXiv:2204.07143",
            "paper_name": "Neighborhood Attention Transformer",
            "origin_url": "https://github.com/SHI-Labs/Neighborhood-Attention-Transformer",
            **kwargs,
        }
    )


_DINAT_PAPER = {"paper_ids": "arXiv:2209.15001", "paper_name": "Dilated Neighborhood Attention Transformer"}


def _dinat_cfg(file: str, **kwargs: Any) -> dict[str, Any]:
    return _cfg(url=f"{_SHI}/dinat/checkpoints/{file}", **_DINAT_PAPER, **kwargs)


def _dinat_s_cfg(file: str, **kwargs: Any) -> dict[str, Any]:
    # The addresses of their code; one version of their documents has _1k_ for _in1k_.
    return _dinat_cfg(file, first_conv="patch_embed.proj", **kwargs)


_AT_32: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "pool_size": (4, 4),
    "crop_pct": 1.0,
    "num_classes": 10,
    "license": "apache-2.0",
    "origin_url": "",
}
_STEM: dict[str, Any] = {"first_conv": "patch_embed.proj.0.conv"}
_AT_384: dict[str, Any] = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0}
_IN22K: dict[str, Any] = {"num_classes": 21841}

default_cfgs = generate_default_cfgs(
    {
        "nat_pico.cifar10": _cfg(**_AT_32, **packaged("nat_pico.cifar10")),
        "dinat_pico.cifar10": _cfg(**_AT_32, **_DINAT_PAPER, **packaged("dinat_pico.cifar10")),
        "nat_pico_stem.untrained": _cfg(**_AT_32, **_STEM),
        "dinat_pico_stem.cifar10": _cfg(**_AT_32, **_STEM, **_DINAT_PAPER, **packaged("dinat_pico_stem.cifar10")),
        "nat_mini.in1k": _cfg(url=f"{_SHI}/nat/checkpoints/CLS/nat_mini.pth"),
        "nat_tiny.in1k": _cfg(url=f"{_SHI}/nat/checkpoints/CLS/nat_tiny.pth"),
        "nat_small.in1k": _cfg(url=f"{_SHI}/nat/checkpoints/CLS/nat_small.pth"),
        "nat_base.in1k": _cfg(url=f"{_SHI}/nat/checkpoints/CLS/nat_base.pth"),
        "dinat_mini.in1k": _dinat_cfg("imagenet1k/dinat_mini_in1k_224.pth"),
        "dinat_tiny.in1k": _dinat_cfg("imagenet1k/dinat_tiny_in1k_224.pth"),
        "dinat_small.in1k": _dinat_cfg("imagenet1k/dinat_small_in1k_224.pth"),
        "dinat_base.in1k": _dinat_cfg("imagenet1k/dinat_base_in1k_224.pth"),
        "dinat_large.in22k_ft_in1k": _dinat_cfg("imagenet1k/dinat_large_in22k_in1k_224.pth"),
        "dinat_large.in22k": _dinat_cfg("imagenet22k/dinat_large_in22k_224.pth", **_IN22K),
        "dinat_large_384.in22k_ft_in1k": _dinat_cfg("imagenet1k/dinat_large_in22k_in1k_384.pth", **_AT_384),
        "dinat_large_384_k11.in22k_ft_in1k": _dinat_cfg("imagenet1k/dinat_large_in22k_in1k_384_11x11.pth", **_AT_384),
        # dinat_large.in22k with tables interpolated by its authors: a start for fine-tuning.
        "dinat_large_384_k11.in22k": _dinat_cfg(
            "imagenet22k/dinat_large_in22k_224_11x11interp.pth", **_AT_384, **_IN22K
        ),
        "dinat_s_tiny.in1k": _dinat_s_cfg("imagenet1k/dinat_s_tiny_in1k_224.pth"),
        "dinat_s_small.in1k": _dinat_s_cfg("imagenet1k/dinat_s_small_in1k_224.pth"),
        "dinat_s_base.in1k": _dinat_s_cfg("imagenet1k/dinat_s_base_in1k_224.pth"),
        "dinat_s_large.in22k_ft_in1k": _dinat_s_cfg("imagenet1k/dinat_s_large_in1k_224.pth"),
        "dinat_s_large.in22k": _dinat_s_cfg("imagenet22k/dinat_s_large_in22k_224.pth", **_IN22K),
        "dinat_s_large_384.in22k_ft_in1k": _dinat_s_cfg("imagenet1k/dinat_s_large_in1k_384.pth", **_AT_384),
    }
)


_MINI = {"embed_dim": 64, "depths": (3, 4, 6, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3.0}
_TINY = {"embed_dim": 64, "depths": (3, 4, 18, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3.0}
_SMALL = {"embed_dim": 96, "depths": (3, 4, 18, 5), "num_heads": (3, 6, 12, 24), "mlp_ratio": 2.0}
_BASE = {"embed_dim": 128, "depths": (3, 4, 18, 5), "num_heads": (4, 8, 16, 32), "mlp_ratio": 2.0, "layer_scale": 1e-5}
_LARGE = {"embed_dim": 192, "depths": (3, 4, 18, 5), "num_heads": (6, 12, 24, 48), "mlp_ratio": 2.0}
_DILATED = {"dilations": (8, 4, 2, 1)}  # the largest that fit maps of 56, 28, 14 and 7
_DILATED_384 = {"dilations": (13, 6, 3, 1)}  # of 96, 48, 24 and 12
_S_TINY = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "mlp_ratio": 4.0, "embed": "patch"}
_S_SMALL = {**_S_TINY, "depths": (2, 2, 18, 2)}
_S_BASE = {**_S_SMALL, "embed_dim": 128, "num_heads": (4, 8, 16, 32)}
# Their classification code says 4, 8, 16, 32 heads for the large one, as it once did by mistake for dinat_large. Their
# detectors and segmenters start from the same weights with these, and the paper has 32 channels per head throughout.
_S_LARGE = {**_S_SMALL, "embed_dim": 192, "num_heads": (6, 12, 24, 48)}
_PICO = {"embed_dim": 48, "depths": (2, 3, 2), "num_heads": (2, 4, 8), "mlp_ratio": 2.0, "stem_strides": (2, 1)}
_PICO_STEM = {**_PICO, "embed": "stem", "stem_strides": (1, 2), "cpe": True}
_PICO_DILATED = {"kernel_size": 3, "dilations": (5, 2, 1)}

register_variants(
    __name__,
    partial(build_pyramid, NeighborhoodAttentionTransformer, filter_fn=checkpoint_filter_fn),
    {
        "nat_pico": (
            "NAT for images of 32 to 64 pixels and for CPUs, of our own making: three levels, stride 2 at the stem.",
            _PICO,
        ),
        "dinat_pico": (
            "DiNAT of the same size, of our own making: windows of 3, with the largest dilations for 32 pixels.",
            {**_PICO, **_PICO_DILATED},
        ),
        "nat_pico_stem": (
            "NAT-Pico with batch norms and a ReLU at a stem that begins with stride 1, and a position encoding by "
            "convolution.",
            _PICO_STEM,
        ),
        "dinat_pico_stem": ("DiNAT-Pico with the same stem and encoding.", {**_PICO_STEM, **_PICO_DILATED}),
        "nat_mini": ("NAT-Mini.", _MINI),
        "nat_tiny": ("NAT-Tiny.", _TINY),
        "nat_small": ("NAT-Small.", {**_SMALL, "layer_scale": 1e-5}),
        "nat_base": ("NAT-Base.", _BASE),
        "dinat_mini": ("DiNAT-Mini.", {**_MINI, **_DILATED}),
        "dinat_tiny": ("DiNAT-Tiny.", {**_TINY, **_DILATED}),
        "dinat_small": ("DiNAT-Small.", {**_SMALL, **_DILATED}),
        "dinat_base": ("DiNAT-Base.", {**_BASE, **_DILATED}),
        "dinat_large": ("DiNAT-Large.", {**_LARGE, **_DILATED}),
        "dinat_large_384": ("DiNAT-Large with the dilations of 384 pixels.", {**_LARGE, **_DILATED_384}),
        "dinat_large_384_k11": (
            "DiNAT-Large with 11x11 windows, for 384 pixels.",
            {**_LARGE, **_DILATED, "kernel_size": 11},
        ),
        "dinat_s_tiny": ("DiNAT_s-Tiny.", {**_S_TINY, **_DILATED}),
        "dinat_s_small": ("DiNAT_s-Small.", {**_S_SMALL, **_DILATED}),
        "dinat_s_base": ("DiNAT_s-Base.", {**_S_BASE, **_DILATED}),
        "dinat_s_large": ("DiNAT_s-Large.", {**_S_LARGE, **_DILATED}),
        "dinat_s_large_384": ("DiNAT_s-Large with the dilations of 384 pixels.", {**_S_LARGE, **_DILATED_384}),
    },
)
