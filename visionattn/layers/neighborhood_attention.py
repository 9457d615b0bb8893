"""Neighborhood attention as a module."""

import torch
from timm.layers import register_notrace_function, trunc_normal_
from torch import Tensor, nn

from visionattn_kernels import neighborhood_attention_2d


@register_notrace_function
@torch.jit.ignore
def attend_neighborhood(
    qkv: Tensor, rpb: Tensor | None, num_heads: int, kernel_size: int, dilation: int | None
) -> Tensor:
    """Neighborhood attention of packed queries, keys and values; opaque to FX and TorchScript, whose shapes it reads.

    Args:
        qkv: `[B, H, W, 3 * dim]`, rows ordered (3, head, head_dim).
        rpb: Relative bias `[num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1]`.
        num_heads: Attention heads.
        kernel_size: Keys per query and axis.
        dilation: Distance of neighbouring keys; None for the largest with which a window fits the map, per axis.

    Returns:
        `[B, H, W, dim]`.
    """
    height, width = qkv.shape[1:3]
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(3)
    dilations = (largest_dilation(height, kernel_size), largest_dilation(width, kernel_size))
    out = neighborhood_attention_2d(q, k, v, kernel_size, dilation=dilations if dilation is None else dilation, rpb=rpb)
    assert isinstance(out, Tensor)
    return out.flatten(-2)


def largest_dilation(length: int, kernel_size: int) -> int:
    """The largest dilation with which a window of `kernel_size` keys fits an axis of `length`; at least 1."""
    return max(1, length // kernel_size)


class NeighborhoodAttention2d(nn.Module):
    """Multi-head neighborhood attention with relative positional bias, `[B, H, W, dim]` to the same.

    NAT (arXiv 2204.07143, eq. 2-3) and, with a dilation, DiNAT (arXiv 2209.15001, eq. 2-4).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 7,
        dilation: int | None = 1,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Builds the module.

        Args:
            dim: Channels.
            num_heads: Attention heads; must divide `dim`.
            kernel_size: Keys per query and axis.
            dilation: Distance of neighbouring keys; None for the largest that fits the map at hand.
            qkv_bias: Whether the projection to queries, keys and values has a bias.
            rel_pos_bias: Whether to learn a relative positional bias per head.
            proj_drop: Dropout after the output projection.
            device: Where parameters are made.
            dtype: Their type.

        Raises:
            ValueError: `num_heads` does not divide `dim`.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got dim {dim} and num_heads {num_heads}")
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        size = 2 * kernel_size - 1
        self.rpb = (
            nn.Parameter(torch.empty(num_heads, size, size, device=device, dtype=dtype)) if rel_pos_bias else None
        )
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        if self.rpb is not None:
            trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, H, W, dim]` to the same."""
        x = attend_neighborhood(self.qkv(x), self.rpb, self.num_heads, self.kernel_size, self.dilation)
        return self.proj_drop(self.proj(x))
