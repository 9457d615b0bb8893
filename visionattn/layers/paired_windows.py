"""Pair-wise cross-attention (PWCA of DCAL) in timm's Swin: each window attends to the same window of another image.

The paper describes tokens of whole images. The pairing of windows is our choice: the window at the same position, with
the relative bias and the mask that it has for itself.
"""

from typing import Any

import torch
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from visionattn.layers.dual_cross_attention import PairSource, attend_pairs
from visionattn.layers.full_attention import fused_is_fast


class PairedWindowAttention(nn.Module):
    """Window attention on pairs, with the parameters of a plain window attention.

    Args:
        attn: attention whose parameters are used.
        pair: index of the image that each of B images is paired with [B].
        source: stream of that image's keys and values.
    """

    def __init__(self, attn: WindowAttention, pair: Tensor, source: PairSource) -> None:
        super().__init__()
        self.attn, self.pair, self.source = attn, pair, source

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map windows [2·B·n, N, D], those of self-attention first, to the same; a mask is [n, N, N]."""
        attn = self.attn
        count, N, _ = x.shape
        q, k, v = attn.qkv(x).reshape(count, N, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        index: Any = attn.relative_position_index
        bias = attn.relative_position_bias_table[index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(count // len(mask), 1, 1, 1)
        windows = count // (2 * len(self.pair))
        pair = (self.pair[:, None] * windows + torch.arange(windows, device=x.device)).flatten()
        dropout = attn.attn_drop.p if attn.training else 0.0
        fused = fused_is_fast(q.device, q.dtype)
        out = attend_pairs(q, k, v, pair, self.source, bias.to(q.dtype), dropout, fused)
        return attn.proj_drop(attn.proj(out.transpose(1, 2).reshape(count, N, -1)))


def forward_paired_windows(block: Any, x: Tensor, pair: Tensor, source: PairSource) -> Tensor:
    """Run a Swin block on maps [2B, H, W, D]: self-attention first, then the pair-wise stream.

    Args:
        block: timm's SwinTransformerBlock, which is left as it was.
        x: maps.
        pair: index of the image that each image is paired with [B].
        source: stream of that image's keys and values.
    """
    attn = block.attn
    if not isinstance(attn, WindowAttention):  # all its heads are cut
        return block(x)
    block.attn = PairedWindowAttention(attn, pair, source)
    try:
        return block(x)
    finally:
        block.attn = attn
