"""Heads made of a whole transformer block, or of attention among the tokens."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionPoolLatent, LayerNorm, Mlp, trunc_normal_
from timm.models.cait import ClassAttn, LayerScaleBlockClassAttn
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from visionattn.probing.heads.base import AttentivePooling, Pooling
from visionattn.probing.heads.pool_first import attend_keys, pool_values, split_heads


class SiglipPooling(AttentivePooling):
    """MAP: cross-attention of a latent query, then a residual MLP.

    Zhai et al., "Scaling Vision Transformers", 2022, §3.2, https://arxiv.org/abs/2106.04560, as SigLIP has it
    (https://arxiv.org/abs/2303.15343). Parameters stand in timm's module; the order of products is ours.
    """

    def __init__(self, dim: int, num_heads: int = 8) -> None:
        super().__init__(dim, num_heads)
        self.block = AttentionPoolLatent(dim, num_heads=num_heads)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights `[B, heads, N]` and the tokens."""
        query = self.block.q(self.block.latent).view(self.num_heads, -1)
        return attend_keys(query, tokens, *self._projections()[0]), tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, dim]` of tokens `[B, N, dim]`."""
        x = self.block.proj(pool_values(*self.attend(tokens), *self._projections()[1]))
        return x + self.block.mlp(x)

    def _projections(self) -> tuple[tuple[Tensor, ...], ...]:
        """Return weight and bias of keys and of values, per head."""
        weight, bias = split_heads(self.block.kv, 2 * self.num_heads)
        assert bias is not None
        return tuple(zip(weight.chunk(2), bias.chunk(2), strict=True))


class CaitPooling(AttentivePooling):
    """A class-attention block with LayerScale and the layer norm behind it.

    Touvron et al., "Going deeper with Image Transformers", 2021, §3, eq. 3-7, https://arxiv.org/abs/2103.17239. Scales
    start at 0.1, as in the shallow networks of §2; 4 heads are those of the comparison in arXiv 2506.10178. Parameters
    stand in timm's block; the order of products is ours.
    """

    num_own_tokens: ClassVar[int] = 1

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__(dim, num_heads)
        self.cls_token = nn.Parameter(torch.empty(dim))
        self.block = LayerScaleBlockClassAttn(dim, num_heads, qkv_bias=True, norm_layer=LayerNorm, init_values=0.1)
        self.norm = LayerNorm(dim)
        trunc_normal_(self.cls_token, std=0.02)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights `[B, heads, 1 + N]`, and the class token and the tokens, normalised."""
        cls, x = self.block.norm1(self.cls_token), self.block.norm1(tokens)
        x = torch.cat([cls.expand(len(x), 1, -1), x], dim=1)
        query = self._attn.q(cls).view(self.num_heads, -1)
        return attend_keys(query, x, *split_heads(self._attn.k, self.num_heads)), x

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, dim]` of tokens `[B, N, dim]`."""
        block, attn = self.block, self._attn
        x = attn.proj(pool_values(*self.attend(tokens), *split_heads(attn.v, self.num_heads)))
        x = self.cls_token + block.gamma_1 * x
        return self.norm(x + block.gamma_2 * block.mlp(block.norm2(x)))

    @property
    def _attn(self) -> ClassAttn:
        assert isinstance(self.block.attn, ClassAttn)
        return self.block.attn


class JepaPooling(AttentivePooling):
    """A pre-norm cross-attention block of a learned query: residual attention, then a residual MLP.

    Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video" (V-JEPA), 2024, §4,
    https://arxiv.org/abs/2404.08471.
    """

    def __init__(self, dim: int, num_heads: int = 16) -> None:
        super().__init__(dim, num_heads)
        self.query = nn.Parameter(torch.empty(dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.mlp = Mlp(dim, 4 * dim)
        trunc_normal_(self.query, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights `[B, heads, N]` and the normalised tokens."""
        x = self.norm1(tokens)
        query = self.q(self.query).view(self.num_heads, -1)
        return attend_keys(query, x, *split_heads(self.k, self.num_heads)), x

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, dim]` of tokens `[B, N, dim]`."""
        x = self.query + self.proj(super().forward(tokens))
        return x + self.mlp(self.norm2(x))


class DinoVitPooling(Pooling):
    """A block of a vision transformer, then the mean of its tokens: every token is a query, so no product is saved.

    Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", 2021, eq. 2-3,
    https://arxiv.org/abs/2010.11929, as DINO's blocks have it but without biases of queries, keys and values.
    """

    def __init__(self, dim: int, num_heads: int = 8) -> None:
        super().__init__(dim, num_heads)
        self.block = Block(dim, num_heads)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, dim]` of tokens `[B, N, dim]`."""
        return self.block(tokens).mean(1)


class AbmilpPooling(AttentivePooling):
    """Self-attention with one head, then a sum of its tokens, weighted by softmax_n(w · tanh(V x_n)).

    Rymarczyk et al., "Kernel Self-Attention for Weakly-supervised Image Classification using Deep Multiple Instance
    Learning", 2021, https://arxiv.org/abs/2005.12991, on the pooling of Ilse et al., 2018, eq. 8,
    https://arxiv.org/abs/1802.04712. Parameters stand in timm's module; the order of products is ours: with one head,
    queries and keys meet in one matrix, W_qᵀ W_k, and so do values, output and V. Two projections of every token are
    left of five.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.self_attention = Attention(dim, num_heads=1)
        self.hidden = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights `[B, 1, N]` and the sums of tokens from self-attention, `[B, N, dim]`, not projected."""
        q, k, _ = self.self_attention.qkv.weight.chunk(3)
        sums = ((tokens @ (q.T @ k * self.self_attention.scale)) @ tokens.mT).softmax(-1) @ tokens
        weight, bias = self._projection()
        hidden = F.linear(sums, self.hidden.weight @ weight, self.hidden(bias)).tanh()
        return self.score(hidden).mT.softmax(-1), sums

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, dim]` of tokens `[B, N, dim]`."""
        weights, sums = self.attend(tokens)
        return F.linear((weights @ sums).squeeze(1), *self._projection())

    def _projection(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of values and output in one."""
        attention = self.self_attention
        return attention.proj.weight @ attention.qkv.weight.chunk(3)[2], attention.proj.bias
