"""Attention whose heads are fewer than its class expects, and attention without heads.

timm's `Attention`, `AttentionRope` and window attention of Swin, and this library's attention compute with as many
heads as their projections have. The classes here do so in place of those that compute with the model's width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.swin_transformer_v2 import WindowAttention as WindowAttentionV2
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn


class HeadlessAttention(nn.Module):
    """Attention whose heads are all cut: the bias of its output projection at every position."""

    rel_pos = None

    def __init__(self, attention: Any) -> None:
        """Take the bias of the output projection of an attention, and what follows it."""
        super().__init__()
        self.bias, self.proj_drop = attention.proj.bias, attention.proj_drop

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Map `[..., C]` to the same shape."""
        return self.proj_drop(x.new_zeros(*x.shape[:-1], 1) + self.bias)

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Do nothing, as there are no tables of positions to resize."""


class CutBeitAttention(BeitAttention):
    """BEiT's attention with any number of heads."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Map tokens `[B, N, C]` to the same."""
        bias = None if self.relative_position_bias_table is None else self._get_rel_pos_bias()
        return _forward(self, x, bias)


class CutRelPosAttention(RelPosAttention):
    """Attention of timm's ViTs with relative positions, with any number of heads."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        """Map tokens `[B, N, C]` to the same."""
        positions: Any = self.rel_pos
        return _forward(self, x, None if positions is None else positions.get_bias())


class CutEvaAttention(EvaAttention):
    """EVA's attention with any number of heads."""

    forward: Any = AttentionRope.forward


class CutWindowAttentionV2(WindowAttentionV2):
    """Window attention of Swin v2 (arXiv 2111.09883, eq. 2) with any number of heads."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map windows `[B * n, N, C]` to the same; a mask is `[n, N, N]`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.logit_scale.clamp(max=math.log(100)).exp()
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)  # [offsets, heads]
        index: Any = self.relative_position_index
        scores = scores + 16 * table[index].permute(2, 0, 1).sigmoid()
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        out = self.attn_drop(scores.softmax(-1)) @ v
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


ANY_HEADS: dict[type[nn.Module], type[nn.Module]] = {
    BeitAttention: CutBeitAttention,
    EvaAttention: CutEvaAttention,
    RelPosAttention: CutRelPosAttention,
    WindowAttentionV2: CutWindowAttentionV2,
}
"""Classes for any number of heads, by those that compute with the model's width."""


def allow_any_heads(attention: Any) -> None:
    """Change an attention of a class of `ANY_HEADS` in place, so that it computes with the heads that it has.

    Separate biases of queries and values become the bias of one projection, whose part for the keys is 0.
    """
    if type(attention) not in ANY_HEADS:
        return
    attention.__class__ = ANY_HEADS[type(attention)]
    if getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        attention.qkv.bias = nn.Parameter(bias.detach(), attention.q_bias.requires_grad)
        attention.q_bias = attention.k_bias = attention.v_bias = None
    # What timm's forward passes read, and these classes lack.
    attention.attn_dim = attention.proj.in_features
    attention.head_dim = attention.attn_dim // attention.num_heads
    attention.num_kv_heads, attention.num_kv_groups = attention.num_heads, 1
    for name in ("q_norm", "k_norm", "norm"):
        if not hasattr(attention, name):
            setattr(attention, name, nn.Identity())
    if not hasattr(attention, "gate"):
        attention.gate = None


def _forward(attention: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    return Attention.forward(attention, x, bias)
