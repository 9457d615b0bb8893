"""Attention of each query over the whole map."""

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.layers.full_attention import attend
from visionattn.layers.mixers.packed import PackedAttention2d


class FullAttention2d(PackedAttention2d):
    """Multi-head attention of each query over the whole map (arXiv 1706.03762), without relative bias."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        is_causal: bool = False,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the module.

        Args:
            dim: Channels.
            num_heads: Attention heads; must divide `dim`.
            qkv_bias: Whether the projection to queries, keys and values has a bias.
            is_causal: Whether a query sees no later key, row by row: a sequence is a map of one row.
            proj_drop: Dropout after the output projection.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: `num_heads` does not divide `dim`.
        """
        super().__init__(dim, num_heads, qkv_bias, proj_drop, device, dtype)
        self.is_causal = is_causal
        self.fused_attn = True  # as in timm's layers

    def attend(self, qkv: Tensor) -> Tensor:
        """Compute attention `[B, H, W, dim]` of packed queries, keys and values."""
        packed = qkv.flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, d]
        if self.is_causal:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            out = attend(q, k, v, fused=self.fused_attn)
        return out.transpose(1, 2).flatten(-2).unflatten(1, qkv.shape[1:3])
