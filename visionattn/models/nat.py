"""Neighborhood Attention Transformers: NAT and DiNAT.

Papers: "Neighborhood Attention Transformer" (Hassani et al., arXiv 2204.07143) and "Dilated Neighborhood Attention
Transformer" (Hassani and Shi, arXiv 2209.15001). A pyramid of four levels; each is a stack of pre-norm blocks of
neighborhood attention with relative bias. DiNAT is NAT whose blocks alternate dilation 1 and a level's dilation.

Modules take and give NCHW maps; blocks run on NHWC, and the maps between them are views of that.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerNorm, LayerNorm2d, LayerScale, Mlp, trunc_normal_
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from torch import Tensor, nn

from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d
from visionattn.models._backbone import Backbone

__all__ = ["NeighborhoodAttentionTransformer"]

Dilations = Sequence[int] | Literal["largest"] | None


class PatchEmbed(nn.Module):
    """Overlapping patches by two 3x3 convolutions with nothing between them, then a norm over channels."""

    def __init__(self, in_chans: int, dim: int, strides: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, dim // 2, 3, strides[0], 1, **dd), nn.Conv2d(dim // 2, dim, 3, strides[1], 1, **dd)
        )
        self.norm = LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, in_chans, H, W]` to `[B, dim, H', W']`."""
        x = self.proj(x).permute(0, 2, 3, 1)
        return self.norm(x).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halves a map and doubles its width by a strided 3x3 convolution, then a norm over channels."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False, **dd)
        self.norm = LayerNorm(2 * dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, dim, H, W]` to `[B, 2 * dim, ceil(H / 2), ceil(W / 2)]`."""
        x = self.reduction(x).permute(0, 2, 3, 1)
        return self.norm(x).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Pre-norm transformer block of neighborhood attention and MLP on `[B, H, W, dim]`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        dilation: int | None,
        mlp_ratio: float,
        qkv_bias: bool,
        layer_scale: float | None,
        proj_drop: float,
        drop_path: float,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, **dd)
        self.attn = NeighborhoodAttention2d(
            dim, num_heads, kernel_size, dilation, qkv_bias=qkv_bias, proj_drop=proj_drop, **dd
        )
        self.ls1 = LayerScale(dim, layer_scale, **dd) if layer_scale is not None else nn.Identity()
        self.norm2 = LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.ls2 = LayerScale(dim, layer_scale, **dd) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, H, W, dim]` to the same."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Level(nn.Module):
    """One level of the pyramid: a downsampling (but for the first) and a stack of blocks."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to this level's width and size."""
        x = self.downsample(x).permute(0, 2, 3, 1)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return x.permute(0, 3, 1, 2)


class NeighborhoodAttentionTransformer(Backbone):
    """NAT, and DiNAT where `dilations` are given; any input size from 32 pixels up works."""

    def __init__(
        self,
        embed_dim: int = 64,
        depths: Sequence[int] = (3, 4, 6, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        kernel_size: int = 7,
        dilations: Dilations = None,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        stem_strides: tuple[int, int] = (2, 2),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Builds the network.

        Args:
            embed_dim: Width of the first level; each level doubles it.
            depths: Blocks per level.
            num_heads: Attention heads per level.
            kernel_size: Keys per query and axis.
            dilations: One dilation per level for every second block of it (1, D, 1, D, ...); "largest" for the largest
                with which a window fits the map at hand (that of the papers at every size); None for 1 throughout.
            mlp_ratio: Hidden width of an MLP over its width.
            qkv_bias: Whether queries, keys and values have a bias.
            layer_scale: Initial LayerScale of a block's branches; None for no LayerScale.
            stem_strides: Strides of the two convolutions of the stem.
            in_chans: Channels of a picture.
            num_classes: Classes; 0 for no classifier.
            global_pool: Pooling before the classifier, as in timm ("avg", "max", ...); "" for none.
            drop_rate: Dropout before the classifier.
            proj_drop_rate: Dropout after attention projections and in MLPs.
            drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
            device: Where parameters are made.
            dtype: Their type.

        Raises:
            ValueError: depths, num_heads and dilations do not name the same number of levels.
        """
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        levels = len(depths)
        if len(num_heads) != levels:
            raise ValueError(f"num_heads must have one entry per level, {levels}; got {len(num_heads)}")
        self.patch_embed = PatchEmbed(in_chans, embed_dim, stem_strides, **dd)
        level_dilations = _level_dilations(dilations, levels)
        drop_path = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        feature_info: list[dict[str, Any]] = []
        self.levels = nn.Sequential()
        for i, depth in enumerate(depths):
            dim = embed_dim * 2**i
            blocks = [
                Block(
                    dim,
                    num_heads[i],
                    kernel_size,
                    1 if j % 2 == 0 else level_dilations[i],
                    mlp_ratio,
                    qkv_bias,
                    layer_scale,
                    proj_drop_rate,
                    next(drop_path),
                    **dd,
                )
                for j in range(depth)
            ]
            self.levels.append(Level(Downsample(dim // 2, **dd) if i else nn.Identity(), blocks))
            reduction = stem_strides[0] * stem_strides[1] * 2**i
            feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"levels.{i}"})
        self.norm: nn.Module = LayerNorm2d(dim, **dd)
        self.finish(feature_info, dim, in_chans, num_classes, global_pool, drop_rate, **dd)
        self.apply(_init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that take no weight decay beyond the 1-D ones: the relative bias tables."""
        return {name for name, _ in self.named_parameters() if name.endswith("rpb")}

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps pictures `[B, in_chans, H, W]` to normalized features `[B, num_features, H / 32, W / 32]`."""
        return self.norm(self.levels(self.patch_embed(x)))


def _level_dilations(dilations: Dilations, levels: int) -> list[int | None]:
    if dilations is None:
        return [1] * levels
    if dilations == "largest":
        return [None] * levels
    if isinstance(dilations, str) or len(dilations) != levels:
        raise ValueError(f'dilations must be None, "largest" or one int per level, {levels}; got {dilations!r}')
    return list(dilations)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj.0",
        "classifier": "head.fc",
        "license": "mit",
        "paper_ids": "arXiv:2204.07143",
        "paper_name": "Neighborhood Attention Transformer",
        "origin_url": "https://github.com/SHI-Labs/Neighborhood-Attention-Transformer",
        **kwargs,
    }


def _dinat_cfg(**kwargs: Any) -> dict[str, Any]:
    return _cfg(paper_ids="arXiv:2209.15001", paper_name="Dilated Neighborhood Attention Transformer", **kwargs)


default_cfgs = generate_default_cfgs(
    {
        "nat_pico.untrained": _cfg(
            input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0, num_classes=10, license="apache-2.0", origin_url=""
        ),
        "nat_mini.untrained": _cfg(),
        "nat_tiny.untrained": _cfg(),
        "nat_small.untrained": _cfg(),
        "nat_base.untrained": _cfg(),
        "dinat_mini.untrained": _dinat_cfg(),
        "dinat_tiny.untrained": _dinat_cfg(),
        "dinat_small.untrained": _dinat_cfg(),
        "dinat_base.untrained": _dinat_cfg(),
        "dinat_large.untrained": _dinat_cfg(),
    }
)


def _create_nat(
    variant: str, pretrained: bool, arch: dict[str, Any], **kwargs: Any
) -> NeighborhoodAttentionTransformer:
    model: NeighborhoodAttentionTransformer = build_model_with_cfg(
        NeighborhoodAttentionTransformer,
        variant,
        pretrained,
        feature_cfg={"out_indices": tuple(range(len(arch["depths"]))), "flatten_sequential": True},
        **{**arch, **kwargs},
    )
    return model


_MINI = {"embed_dim": 64, "depths": (3, 4, 6, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3.0}
_TINY = {"embed_dim": 64, "depths": (3, 4, 18, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3.0}
_SMALL = {"embed_dim": 96, "depths": (3, 4, 18, 5), "num_heads": (3, 6, 12, 24), "mlp_ratio": 2.0}
_BASE = {"embed_dim": 128, "depths": (3, 4, 18, 5), "num_heads": (4, 8, 16, 32), "mlp_ratio": 2.0, "layer_scale": 1e-5}
_LARGE = {"embed_dim": 192, "depths": (3, 4, 18, 5), "num_heads": (6, 12, 24, 48), "mlp_ratio": 2.0}
_DILATED = {"dilations": (8, 4, 2, 1)}  # the largest that fit maps of 56, 28, 14 and 7
_PICO = {"embed_dim": 48, "depths": (2, 3, 2), "num_heads": (2, 4, 8), "mlp_ratio": 2.0, "stem_strides": (2, 1)}


@register_model
def nat_pico(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """NAT for pictures of 32 to 64 pixels and for CPUs, of our own making: three levels, stride 2 at the stem."""
    return _create_nat("nat_pico", pretrained, _PICO, **kwargs)


@register_model
def nat_mini(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """NAT-Mini."""
    return _create_nat("nat_mini", pretrained, _MINI, **kwargs)


@register_model
def nat_tiny(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """NAT-Tiny."""
    return _create_nat("nat_tiny", pretrained, _TINY, **kwargs)


@register_model
def nat_small(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """NAT-Small."""
    return _create_nat("nat_small", pretrained, {**_SMALL, "layer_scale": 1e-5}, **kwargs)


@register_model
def nat_base(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """NAT-Base."""
    return _create_nat("nat_base", pretrained, _BASE, **kwargs)


@register_model
def dinat_mini(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT-Mini."""
    return _create_nat("dinat_mini", pretrained, {**_MINI, **_DILATED}, **kwargs)


@register_model
def dinat_tiny(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT-Tiny."""
    return _create_nat("dinat_tiny", pretrained, {**_TINY, **_DILATED}, **kwargs)


@register_model
def dinat_small(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT-Small."""
    return _create_nat("dinat_small", pretrained, {**_SMALL, **_DILATED}, **kwargs)


@register_model
def dinat_base(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT-Base."""
    return _create_nat("dinat_base", pretrained, {**_BASE, **_DILATED}, **kwargs)


@register_model
def dinat_large(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT-Large."""
    return _create_nat("dinat_large", pretrained, {**_LARGE, **_DILATED}, **kwargs)
