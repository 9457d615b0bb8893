"""Neighborhood attention as a module."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, trunc_normal_
from torch import Tensor, nn

from visionattn.layers.halo_attention import RelativeTables, resize_tables
from visionattn.layers.heads import check_heads
from visionattn.layers.pointwise import MapLinear
from visionattn_kernels import Window, neighborhood_attention_2d

KernelSize = int | tuple[int, int]


@register_notrace_function
def attend_neighborhood(
    qkv: Tensor,
    rpb: Tensor | None,
    num_heads: int,
    kernel_size: KernelSize,
    dilation: int | None,
    is_causal: bool = False,
    height_rel: Tensor | None = None,
    width_rel: Tensor | None = None,
) -> Tensor:
    """Compute neighborhood attention of packed queries, keys and values; opaque to FX, because it reads shapes.

    Args:
        qkv: `[B, H, W, 3 * dim]`, rows ordered (3, head, head_dim).
        rpb: Relative bias `[num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1]`.
        num_heads: Attention heads.
        kernel_size: Keys per query, per axis.
        dilation: Distance of neighbouring keys; None for the largest with which a window fits the map, per axis.
        is_causal: Whether a query sees no later key on either axis.
        height_rel: Embedding r of each row offset `[2 * kernel_size - 1, head_dim]`; `q.r` is added to `q.k`.
        width_rel: Embedding of each column offset.

    Returns:
        `[B, H, W, dim]`.
    """
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(3)
    dilations = _dilations(qkv.shape[1:3], kernel_size, dilation)
    scale = q.shape[-1] ** -0.5
    rel_h, rel_w = (None if table is None else q @ (table * scale).T for table in (height_rel, width_rel))
    out = neighborhood_attention_2d(
        q, k, v, kernel_size, dilation=dilations, is_causal=is_causal, rpb=rpb, rel_h=rel_h, rel_w=rel_w
    )
    return out.flatten(-2)


@register_notrace_function
def pad_to_window(x: Tensor, kernel_size: KernelSize, dilation: int | None) -> Tensor:
    """Append zeros to a map `[B, H, W, C]` that is smaller than a window, kernel_size * dilation, until it fits."""
    kernel, dilations = _pair(kernel_size), _dilations(x.shape[1:3], kernel_size, dilation)
    bottom, right = (max(0, k * d - n) for k, d, n in zip(kernel, dilations, x.shape[1:3], strict=True))
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x


def largest_dilation(length: int, kernel_size: int) -> int:
    """Return the largest dilation, at least 1, with which `kernel_size` keys fit an axis of `length`."""
    return max(1, length // kernel_size)


def resize_rpb(rpb: Tensor, kernel_size: KernelSize) -> Tensor:
    """Interpolate a table `[heads, 2k - 1, 2k - 1]` of relative biases bicubically to another kernel size."""
    height, width = (2 * k - 1 for k in _pair(kernel_size))
    if rpb.shape[1:] == (height, width):
        return rpb
    return F.interpolate(rpb[None].float(), (height, width), mode="bicubic")[0].to(rpb.dtype)


def _dilations(size: Sequence[int], kernel_size: KernelSize, dilation: int | None) -> tuple[int, int]:
    if dilation is not None:
        return dilation, dilation
    kernel = _pair(kernel_size)
    return largest_dilation(size[0], kernel[0]), largest_dilation(size[1], kernel[1])


def _pair(kernel_size: KernelSize) -> tuple[int, int]:
    return (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size


def _plain(kernel_size: KernelSize) -> KernelSize:
    """Return an int if both axes agree, or else a tuple, also for a list from a configuration file.

    Raises:
        ValueError: It is not an int from 1 up, or two of them.
    """
    height, width = Window.neighborhood(kernel_size).kernel_size
    return height if height == width else (height, width)


class NeighborhoodAttention2d(nn.Module):
    """Multi-head neighborhood attention with relative positional bias, `[B, H, W, dim]` to the same.

    NAT (arXiv 2204.07143, eq. 2-3) and, with a dilation, DiNAT (arXiv 2209.15001, eq. 2-4).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: KernelSize = 7,
        dilation: int | None = 1,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        legacy_pad: bool = False,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        is_causal: bool = False,
        rel_pos: Literal["query"] | None = None,
    ) -> None:
        """Build the module.

        Args:
            dim: Channels.
            num_heads: Attention heads; must divide `dim`.
            kernel_size: Keys per query and axis, or one number per axis.
            dilation: Distance of neighbouring keys; None for the largest that fits the map.
            qkv_bias: Whether the projection to queries, keys and values has a bias.
            rel_pos_bias: Whether to learn a relative positional bias per head.
            legacy_pad: What happens on a map that is smaller than kernel_size * dilation. False: a query sees the
                whole of its dilation group. True: zeros are appended (bottom, right) until the window fits, and are
                attended; published weights saw that on small maps.
            proj_drop: Dropout after the output projection.
            device: Device of the parameters.
            dtype: Type of the parameters.
            is_causal: Whether a query sees no later row and no later column: on a map of one row, the latest
                `kernel_size` tokens of a sequence.
            rel_pos: "query" for a position that depends on the query: `q.r` is added to `q.k`, where r is the sum of a
                row's and a column's embedding, shared by the heads. It may stand beside the bias, or replace it.

        Raises:
            ValueError: `num_heads` does not divide `dim`, or another argument is out of its range.
        """
        super().__init__()
        check_heads(dim, num_heads)
        if rel_pos not in ("query", None):
            raise ValueError(f'rel_pos must be "query" or None; got {rel_pos!r}')
        self.num_heads = num_heads
        self.kernel_size = _plain(kernel_size)
        self.dilation = dilation
        self.legacy_pad = legacy_pad
        self.is_causal = is_causal
        self.qkv = MapLinear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        window = Window.neighborhood(kernel_size, dilation=1 if dilation is None else dilation)
        height, width = (2 * k - 1 for k in window.kernel_size)
        self.rpb = (
            nn.Parameter(torch.empty(num_heads, height, width, device=device, dtype=dtype)) if rel_pos_bias else None
        )
        self.pos_embed = RelativeTables((height, width), dim // num_heads, device, dtype) if rel_pos else None
        self.proj = MapLinear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        if self.rpb is not None:
            trunc_normal_(self.rpb, std=0.02)

    def set_kernel_size(self, kernel_size: KernelSize) -> None:
        """Change the kernel size; relative biases are interpolated bicubically, embeddings linearly."""
        self.kernel_size = _plain(kernel_size)
        if self.pos_embed is not None:
            height, width = _pair(kernel_size)
            resize_tables(self.pos_embed, (2 * height - 1, 2 * width - 1))
        if self.rpb is not None:
            self.rpb = nn.Parameter(resize_rpb(self.rpb.detach(), kernel_size), self.rpb.requires_grad)

    def project(self, x: Tensor) -> Tensor:
        """Return packed queries, keys and values `[B, H, W, 3 * dim]` of a map, which grows with `legacy_pad`."""
        return self.qkv(pad_to_window(x, self.kernel_size, self.dilation) if self.legacy_pad else x)

    def attend(self, qkv: Tensor) -> Tensor:
        """Compute attention `[B, H, W, dim]` of packed queries, keys and values, before the output projection."""
        tables = () if self.pos_embed is None else (self.pos_embed.height_rel, self.pos_embed.width_rel)
        return attend_neighborhood(
            qkv, self.rpb, self.num_heads, self.kernel_size, self.dilation, self.is_causal, *tables
        )

    def window(self, size: tuple[int, int]) -> Window:
        """Return the rule of which keys a query sees on a projected map of this height and width."""
        dilations = _dilations(size, self.kernel_size, self.dilation)
        return Window.neighborhood(self.kernel_size, dilation=dilations, is_causal=self.is_causal)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, H, W, dim]` to the same."""
        height, width = x.shape[1], x.shape[2]
        x = self.attend(self.project(x))
        if self.legacy_pad:
            x = x[:, :height, :width]
        return self.proj_drop(self.proj(x))
