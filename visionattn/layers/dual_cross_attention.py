"""Dual cross-attention: selected tokens against a whole image (GLCA), and an image against a pair (PWCA).

Both work on the parameters of a block of timm's ViT, whose names and shapes stay as they are. The parts are those of
Zhu et al., "Dual Cross-Attention Learning for Fine-Grained Visual Categorization and Object Re-Identification", CVPR
2022, https://arxiv.org/abs/2205.02151, sections 3.1 to 3.3.

    B images, N tokens (the class token first), D width, h heads, d = D / h
"""

from typing import Any, Literal

import torch
from timm.layers import Attention, register_notrace_function
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from visionattn.layers.full_attention import attend
from visionattn.layers.pointwise import apply_rows

GlcaPool = Literal["token", "avg"]
PairSource = Literal["sa", "pwca"]
"""Source of a pair's keys and values: the pair's self-attention ("sa"), or its pair-wise stream ("pwca")."""


def rollout_class_token(scores: list[Tensor]) -> Tensor:
    """Return the attention rollout of the class token (equation 2): the first row of S̄_n ⊗ … ⊗ S̄_1.

    S̄ = (S + 1) / 2 counts the residual connection in. A row is carried from the last block down to the first, at N²
    operations each, so that no product of two N×N matrices is made.

    Args:
        scores: S of each block, first block first, [B, N, N], mean over heads.

    Returns:
        [B, N], rows that sum to 1.
    """
    column = scores[0][:, :, 0]
    row = torch.cat([torch.ones_like(column[:, :1]), torch.zeros_like(column[:, 1:])], dim=1)
    for own in scores[::-1]:
        # Not a matrix product, which autocast would round.
        row = 0.5 * (row + (row[:, :, None] * own).sum(1))
    return row


@register_notrace_function
def select_patches(scores: list[Tensor], ratio: float, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Compute the class token's rollout over patches, and select the patches with the largest.

    Args:
        scores: S of each block, first block first, [B, N, N], mean over heads.
        ratio: share of the patches to select, at least one.
        num_prefix_tokens: number of tokens before the patches.

    Returns:
        [B, P] for P patches, and places among them [B, R].
    """
    rollout = rollout_class_token(scores)[:, num_prefix_tokens:]
    # The small number mends shares such as 0.29 of 100, which is 28.999… to a computer.
    count = max(1, int(ratio * rollout.shape[1] + 1e-6))
    return rollout, rollout.topk(count, dim=1)[1]


def attend_pairs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pair: Tensor,
    source: PairSource = "sa",
    bias: Tensor | None = None,
    dropout: float = 0.0,
    fused: bool = True,
) -> Tensor:
    """Compute self-attention of B images and pair-wise attention of the same images (equation 4).

    In pair-wise attention an image's queries meet its own keys and those of another image under one softmax.

    Args:
        q: queries [2B, h, N, d], those of self-attention first, then those of the pair-wise stream.
        k: keys, likewise.
        v: values, likewise.
        pair: index of the image that each of the B images is paired with [B].
        source: stream of that image's keys and values, a `PairSource`.
        bias: added to the logits, [1 or 2B, h, N, N]; both images of a pair get the same.
        dropout: of probabilities.
        fused: whether torch's fused operator computes them, see `attend`.

    Returns:
        [2B, h, N, d].
    """
    count = pair.shape[0]
    start = 0 if source == "sa" else count
    keys = torch.cat([k[count:], k[start : start + count][pair]], dim=2)
    values = torch.cat([v[count:], v[start : start + count][pair]], dim=2)
    alone, both = bias, bias
    if bias is not None:
        alone = bias[:count]
        both = torch.cat([bias[-count:], bias[-count:]], dim=3)
    own = attend(q[:count], k[:count], v[:count], alone, dropout, fused)
    return torch.cat([own, attend(q[count:], keys, values, both, dropout, fused)])


class DualCrossAttention(Attention):
    """timm's attention in parts: projections, probabilities, and what follows attention."""

    @property
    def dropout(self) -> float:
        """Dropout of probabilities in the current mode."""
        return self.attn_drop.p if self.training else 0.0

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [B, h, N, d] of tokens [B, N, D]."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def project_selected(self, selected: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, h, R, d] of some tokens [B, R, D], keys and values [B, h, N, d] of all [B, N, D]."""
        B, N, _ = x.shape
        q = apply_rows(self.qkv, selected, slice(self.attn_dim))
        kv = apply_rows(self.qkv, x, slice(self.attn_dim, None))
        q = q.reshape(B, -1, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = kv.reshape(B, N, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def probabilities(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the softmax over keys [B, h, N, N]."""
        return (q * self.scale @ k.transpose(-2, -1)).softmax(-1)

    def merge(self, x: Tensor) -> Tensor:
        """Map heads [B, h, N, d] to tokens [B, N, D]."""
        B, _, N, _ = x.shape
        return self.proj_drop(self.proj(self.norm(x.transpose(1, 2).reshape(B, N, self.attn_dim))))


class DualCrossBlock(Block):
    """timm's block, which can also return its scores, attend to pairs, or compute some tokens alone."""

    attn: DualCrossAttention

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "attn_layer": DualCrossAttention})

    def forward_parts(
        self, x: Tensor, pair: Tensor | None, source: PairSource, scored: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Compute self-attention, pair-wise attention if there are pairs, and the scores of self-attention.

        Where gradients are wanted, attention is fused, which keeps no probabilities, and the scores are computed by
        themselves. Otherwise, or without timm's flag `fused_attn`, the probabilities serve both.

        Args:
            x: tokens [B, N, D]; with pairs [2B, N, D], those of self-attention first.
            pair: index of the image that each image is paired with [B], or None.
            source: stream of that image's keys and values, a `PairSource`.
            scored: whether the scores are wanted.

        Returns:
            Tokens like `x`; scores [B, N, N], mean over heads and without gradients, or None.
        """
        attn = self.attn
        q, k, v = attn.project(self.norm1(x))
        scores = None
        if pair is None and (not attn.fused_attn or (scored and not torch.is_grad_enabled())):
            probabilities = attn.probabilities(q, k)
            scores = probabilities.detach().mean(1) if scored else None
            return self._finish(x, attn.attn_drop(probabilities).to(v.dtype) @ v), scores
        if scored:
            count = x.shape[0] if pair is None else pair.shape[0]
            scores = attn.probabilities(q[:count].detach(), k[:count].detach()).mean(1)
        if pair is None:
            out = attend(q, k, v, None, attn.dropout)
        else:
            out = attend_pairs(q, k, v, pair, source, None, attn.dropout, attn.fused_attn)
        return self._finish(x, out), scores

    def forward_selected(self, selected: Tensor, x: Tensor) -> Tensor:
        """Let some tokens [B, R, D] attend to all [B, N, D] (equation 3): [B, R, D]."""
        q, k, v = self.attn.project_selected(self.norm1(selected), self.norm1(x))
        return self._finish(selected, attend(q, k, v, None, self.attn.dropout, self.attn.fused_attn))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn.merge(attended)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class GlobalLocalCrossAttention(nn.Module):
    """The class token, and the patches that matter most to it, look once more at all tokens.

    Tokens of one block do not see each other's answers. With the pooling ``token`` the answers of the selected patches
    thus reach neither prediction nor gradient, so they are not computed, and no patches need be selected.

    Args:
        block: with weights of its own.
        norm: of its tokens.
        ratio: R, the share of the patches that are selected, at least one.
        pool: ``token``, the class token alone, as the paper says; or ``avg``, the mean of the class token and the
            selected patches.

    Raises:
        ValueError: `ratio` or `pool` is not one of these.
    """

    def __init__(self, block: DualCrossBlock, norm: nn.Module, ratio: float, pool: GlcaPool) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise ValueError(f"glca_ratio must lie in (0, 1], got {ratio}")
        if pool not in ("token", "avg"):
            raise ValueError(f"glca_pool must be token or avg, got {pool!r}")
        self.block, self.norm = block, norm
        self.ratio, self.needs_scores = ratio, pool == "avg"

    def forward(self, x: Tensor, scores: list[Tensor], num_prefix_tokens: int) -> Tensor:
        """Map the tokens [B, N, D] before the last block to features [B, D].

        Args:
            x: tokens, the class token first, then other prefix tokens, then patches.
            scores: [B, N, N] of each block up to there; may be empty unless `needs_scores`.
            num_prefix_tokens: number of tokens before the patches.
        """
        queries = x[:, :1]
        if self.needs_scores:
            _, chosen = select_patches(scores, self.ratio, num_prefix_tokens)
            chosen = (chosen + num_prefix_tokens)[:, :, None].expand(-1, -1, x.shape[-1])
            queries = torch.cat([queries, x.gather(1, chosen)], dim=1)
        return self.norm(self.block.forward_selected(queries, x)).mean(1)
