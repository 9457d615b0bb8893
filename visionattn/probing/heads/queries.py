"""Heads in which a few queries attend the tokens, and nothing else."""

from typing import ClassVar

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from visionattn.probing.heads.base import AttentivePooling, Pooling, require_divisor
from visionattn.probing.heads.pool_first import attend, attend_keys, pool_values, split_heads


class MeanPooling(Pooling):
    """The mean of the tokens; of a class token alone, that token."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, dim]` of tokens `[B, N, dim]`."""
        return tokens.mean(1)


class EfficientProbing(AttentivePooling):
    """M learned queries on the tokens as they are; each pools its share of the value channels.

    Psomas et al., "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency", 2025,
    https://arxiv.org/abs/2506.10178. Features are narrower than tokens by the factor `d_out`, which must divide `dim`;
    M must divide `dim / d_out`.
    """

    def __init__(self, dim: int, num_queries: int = 32, d_out: int = 1) -> None:
        require_divisor("d_out", d_out, "dim", dim)
        require_divisor("number of queries", num_queries, "dim / d_out", dim // d_out)
        super().__init__(dim // d_out, num_queries)
        self.num_queries = num_queries
        self.scale = dim**-0.5
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, dim))
        self.v = nn.Linear(dim, self.num_features, bias=False)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights `[B, M, N]` and the tokens."""
        return attend(self.queries * self.scale, tokens), tokens


class AimPooling(AttentivePooling):
    """A learned query attends batch-normalised tokens with several heads.

    El-Nouby et al., "Scalable Pre-training of Large Autoregressive Image Models", 2024,
    https://arxiv.org/abs/2401.08541. The batch norm has no parameters.
    """

    def __init__(self, dim: int, num_heads: int = 16) -> None:
        super().__init__(dim, num_heads)
        self.query = nn.Parameter(0.02 * torch.randn(dim))
        self.norm = nn.BatchNorm1d(dim, eps=1e-6, affine=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights `[B, heads, N]` and the normalised tokens."""
        x = self.norm(tokens.flatten(0, 1)).view_as(tokens)
        return attend_keys(self.query.view(self.num_heads, -1), x, *split_heads(self.k, self.num_heads)), x


class CapiPooling(AttentivePooling):
    """A learned query attends the tokens with heads of 64 channels; keys and values have biases.

    Darcet et al., "Cluster and Predict Latent Patches for Improved Masked Image Modeling", 2025,
    https://arxiv.org/abs/2502.08769. Its classifier stands on the features without a batch norm.
    """

    def __init__(self, dim: int, head_dim: int = 64) -> None:
        require_divisor("head_dim", head_dim, "dim", dim)
        super().__init__(dim, dim // head_dim)
        self.query = nn.Parameter(torch.empty(dim))
        self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim)
        for x in (self.query, self.k.weight, self.v.weight):
            trunc_normal_(x, std=0.02)
        for x in (self.k.bias, self.v.bias):
            nn.init.zeros_(x)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights `[B, heads, N]` and the tokens."""
        return attend_keys(self.query.view(self.num_heads, -1), tokens, *split_heads(self.k, self.num_heads)), tokens


class CaePooling(AttentivePooling):
    """Cross-attention of a learned query; query, keys and values each have a layer norm of their own.

    Chen et al., "Context Autoencoder for Self-Supervised Representation Learning", 2022,
    https://arxiv.org/abs/2202.03026. As in its blocks, queries and values have biases and keys have none.
    """

    def __init__(self, dim: int, num_heads: int = 8) -> None:
        super().__init__(dim, num_heads)
        self.query = nn.Parameter(0.02 * torch.randn(dim))
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(dim) for _ in range(3))
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights `[B, heads, N]` and the tokens that values are made of."""
        query = self.q(self.norm_q(self.query)).view(self.num_heads, -1)
        return attend_keys(query, self.norm_k(tokens), *split_heads(self.k, self.num_heads)), self.norm_v(tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, dim]` of tokens `[B, N, dim]`."""
        return self.proj(super().forward(tokens))


class CocaPooling(AttentivePooling):
    """Multi-query attention: the heads of a learned query share one key and one value projection.

    Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", 2022, §3.2,
    https://arxiv.org/abs/2205.01917. CoCa's pooler has further queries, for captions, beside the one that sums up
    the image. The count with which this head is compared (arXiv 2506.10178) includes them, so they are held here;
    only the first reaches the features, and the gradient of the others is 0.
    """

    def __init__(self, dim: int, num_heads: int = 8, head_dim: int = 64, num_queries: int = 196) -> None:
        super().__init__(dim)
        self.num_heads = num_heads  # of `head_dim` channels each, whatever `dim` is
        self.queries = nn.Parameter(torch.randn(num_queries, dim))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.q = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.k = nn.Linear(dim, head_dim, bias=False)
        self.v = nn.Linear(dim, head_dim, bias=False)
        self.proj = nn.Linear(num_heads * head_dim, dim, bias=False)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights `[B, heads, N]` and the tokens."""
        query = self.q(self.norm(self.queries[0])).view(self.num_heads, -1)
        return attend_keys(query, tokens, *split_heads(self.k)), tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, dim]` of tokens `[B, N, dim]`."""
        return self.proj(pool_values(*self.attend(tokens), *split_heads(self.v)))


class SimPooling(AttentivePooling):
    """The mean token asks, with one head; values are the normalised tokens themselves.

    Psomas et al., "Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?", 2023,
    https://arxiv.org/abs/2309.06891, with the plain mean (its exponent γ = 1).
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights `[B, 1, N]` and the normalised tokens."""
        x = self.norm(tokens)
        return attend_keys(self.q(tokens.mean(1, keepdim=True)), x, *split_heads(self.k)), x

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, dim]` of tokens `[B, N, dim]`."""
        weights, x = self.attend(tokens)
        return (weights @ x).squeeze(1)


class ClipPooling(AttentivePooling):
    """The mean token attends itself and the tokens, all with learned positions; N is always `num_tokens`.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, §2.4,
    https://arxiv.org/abs/2103.00020: self-attention of the mean and the tokens, of which the mean's row is kept.
    """

    num_own_tokens: ClassVar[int] = 1

    def __init__(self, dim: int, num_heads: int = 4, num_tokens: int = 196) -> None:
        super().__init__(dim, num_heads)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pos_embed = nn.Parameter(torch.empty(1 + num_tokens, dim))
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        trunc_normal_(self.pos_embed, std=dim**-0.5)
        for linear in (self.q, self.k, self.v):
            trunc_normal_(linear.weight, std=dim**-0.5)
            nn.init.zeros_(linear.bias)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights `[B, heads, 1 + N]`, and the mean and the tokens with their positions."""
        if tokens.shape[1] + 1 != len(self.pos_embed):
            raise ValueError(
                f"head clip has positions for {len(self.pos_embed) - 1} tokens; got {tokens.shape[1]}; "
                f"create it with num_tokens={tokens.shape[1]}"
            )
        x = self.norm(tokens)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.pos_embed
        query = self.q(x[:, 0]).unflatten(-1, (self.num_heads, -1))
        return attend_keys(query, x, *split_heads(self.k, self.num_heads)), x

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, dim]` of tokens `[B, N, dim]`."""
        return self.proj(super().forward(tokens))
