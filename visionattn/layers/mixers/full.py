"""Attention of each query over the whole map."""

import torch.nn.functional as F
from torch import Tensor

from visionattn.layers.mixers.packed import PackedAttention2d


class FullAttention2d(PackedAttention2d):
    """Multi-head attention of each query over the whole map (arXiv 1706.03762), without relative bias."""

    def attend(self, qkv: Tensor) -> Tensor:
        """Compute attention `[B, H, W, dim]` of packed queries, keys and values."""
        packed = qkv.flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, d]
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).flatten(-2).unflatten(1, qkv.shape[1:3])
