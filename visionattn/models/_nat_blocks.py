"""Modules of the NAT family.

Modules map NCHW to NCHW; blocks run on NHWC, and the maps between them are views of it. By default norms have
the epsilon of torch, not timm's: published weights of NAT were trained with it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch.nn.functional as F
from timm import layers
from timm.layers import ConvNormAct, DropPath, LayerScale, register_notrace_function, trunc_normal_
from timm.models import checkpoint_seq
from torch import Tensor, nn

from visionattn.layers.pointwise import MapLinear, MapMlp

LayerNorm = partial(layers.LayerNorm, eps=1e-5)
LayerNorm2d = partial(layers.LayerNorm2d, eps=1e-5)

Dilation = int | Sequence[int] | Literal["largest"]
"""Dilation of a stack of blocks: D for 1, D, 1, D, ...; one per block; or "largest", the largest that fits."""


class ConvEmbed(nn.Module):
    """Overlapping patches by two 3x3 convolutions with nothing between them, then a norm over channels."""

    def __init__(self, in_chans: int, dim: int, strides: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, dim // 2, 3, strides[0], 1, **dd), nn.Conv2d(dim // 2, dim, 3, strides[1], 1, **dd)
        )
        self.norm = LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_chans, H, W]` to `[B, dim, H', W']`."""
        x = self.proj(x).permute(0, 2, 3, 1)
        return self.norm(x).permute(0, 3, 1, 2)


class ConvStem(nn.Module):
    """Overlapping patches by two 3x3 convolutions, each with a batch norm, and a ReLU between them."""

    def __init__(self, in_chans: int, dim: int, strides: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            ConvNormAct(in_chans, dim // 2, 3, strides[0], **dd),
            ConvNormAct(dim // 2, dim, 3, strides[1], apply_act=False, **dd),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_chans, H, W]` to `[B, dim, H', W']`."""
        return self.proj(x)


class PatchEmbed(nn.Module):
    """Patches side by side, then a norm over channels, if any; zeros fill the last row and column of patches."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, norm: bool = True, **dd: Any) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size, **dd)
        self.norm = LayerNorm(dim, **dd) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_chans, H, W]` to `[B, dim, ceil(H / patch_size), ceil(W / patch_size)]`."""
        x = self.proj(pad_to_multiple(x, self.patch_size)).permute(0, 2, 3, 1)
        return self.norm(x).permute(0, 3, 1, 2)


class ConvDownsample(nn.Module):
    """Strided 3x3 convolution that halves a map and doubles its width, then a norm over channels."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False, **dd)
        self.norm = LayerNorm(2 * dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, dim, H, W]` to `[B, 2 * dim, ceil(H / 2), ceil(W / 2)]`."""
        x = self.reduction(x).permute(0, 2, 3, 1)
        return self.norm(x).permute(0, 3, 1, 2)


class PatchMerging(nn.Module):
    """Swin's merging, which halves a map and doubles its width: a norm per 2x2 square, a linear layer."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.reduction = MapLinear(4 * dim, 2 * dim, bias=False, **dd)
        self.norm = LayerNorm(4 * dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, dim, H, W]` to `[B, 2 * dim, ceil(H / 2), ceil(W / 2)]`."""
        x = pad_to_multiple(x, 2).permute(0, 2, 3, 1)
        squares = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [B, H/2, 2, W/2, 2, dim]
        x = squares.permute(0, 1, 3, 4, 2, 5).flatten(3)  # published weights count down a column first
        return self.reduction(self.norm(x)).permute(0, 3, 1, 2)


@register_notrace_function
def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Append zeros to a map `[B, C, H, W]` until `multiple` divides height and width."""
    bottom, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


class CausalConv2d(nn.Conv2d):
    """A 3x3 convolution that does not see positions after its centre, row by row."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same size."""
        past = F.pad(self.weight.flatten(2)[..., :5], (0, 4)).view_as(self.weight)
        return F.conv2d(x, past, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Block(nn.Module):
    """Pre-norm transformer block of a token mixer and an MLP on `[B, H, W, dim]`."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float,
        layer_scale: float | None,
        proj_drop: float,
        drop_path: float,
        cpe: bool = False,
        norm_eps: float = 1e-5,
        is_causal: bool = False,
        **dd: Any,
    ) -> None:
        super().__init__()
        conv = CausalConv2d if is_causal else nn.Conv2d
        self.cpe = conv(dim, dim, 3, padding=1, groups=dim, **dd) if cpe else None
        self.norm1 = LayerNorm(dim, eps=norm_eps, **dd)
        self.attn = attn
        self.ls1 = LayerScale(dim, layer_scale, **dd) if layer_scale is not None else nn.Identity()
        self.norm2 = LayerNorm(dim, eps=norm_eps, **dd)
        self.mlp = MapMlp(dim, int(dim * mlp_ratio), proj_drop, **dd)
        self.ls2 = LayerScale(dim, layer_scale, **dd) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, H, W, dim]` to the same."""
        if self.cpe is not None:
            x = x + self.cpe(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
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
        """Map `[B, C, H, W]` to this level's width and size."""
        x = self.downsample(x).permute(0, 2, 3, 1)
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return x.permute(0, 3, 1, 2)


def block_dilations(dilation: Dilation, depth: int) -> list[int | None]:
    """Return the dilations of `depth` blocks; None stands for the largest that fits the map.

    Raises:
        ValueError: another word than "largest", or not one dilation per block.
    """
    if isinstance(dilation, int):
        return [1 if i % 2 == 0 else dilation for i in range(depth)]
    if dilation == "largest":
        return [1 if i % 2 == 0 else None for i in range(depth)]
    if isinstance(dilation, str) or len(dilation) != depth:
        raise ValueError(f'a dilation must be an int, "largest" or one int per block, {depth}; got {dilation!r}')
    return list(dilation)


@runtime_checkable
class HasInitialWeights(Protocol):
    """A mixer whose linear layers start otherwise than those of a model."""

    def init_weights(self) -> None:
        """Set the parameters that the model has initialised like all others."""


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Initialise linear layers from a truncated normal distribution, as in the papers; mixers may set theirs after."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, HasInitialWeights):
        module.init_weights()
