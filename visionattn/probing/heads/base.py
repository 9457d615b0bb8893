"""The parts of every head: pooling of tokens, batch norm without parameters, a linear classifier."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from visionattn.probing.heads.pool_first import pool_values, split_heads

TokenKind = Literal["patches", "cls", "all", "cls_or_patches"]
"""Tokens of a backbone that a head takes, see `select_tokens`."""


def select_tokens(tokens: Tensor, kind: TokenKind, num_prefix_tokens: int, num_reg_tokens: int = 0) -> Tensor:
    """Return the tokens for a head out of all tokens of a timm backbone, without registers.

    Args:
        tokens: `[B, num_prefix_tokens + N, dim]`: class token, registers, patches, whichever of them there are.
        kind: "patches"; "cls" for the class token as a sequence of one; "all" for the class token and the patches;
            "cls_or_patches" for the class token if there is one, else the patches.
        num_prefix_tokens: Tokens before the patches.
        num_reg_tokens: How many of these are registers.

    Returns:
        `[B, N, dim]`, `[B, 1, dim]` or `[B, 1 + N, dim]`.

    Raises:
        ValueError: The kind needs a class token and the backbone has none.
    """
    cls, patches = tokens[:, :1], tokens[:, num_prefix_tokens:]
    has_cls = num_prefix_tokens > num_reg_tokens
    if kind in ("cls", "all") and not has_cls:
        raise ValueError(
            f"tokens {kind!r} want a class token; the backbone has {num_prefix_tokens} prefix tokens, of which "
            f"{num_reg_tokens} are registers; take 'patches' or 'cls_or_patches'"
        )
    if kind == "all":
        return torch.cat([cls, patches], dim=1)
    return patches if kind == "patches" or not has_cls else cls


def require_divisor(name: str, value: int, of: str, total: int) -> None:
    """Raise a ValueError unless `value` is positive and divides `total`."""
    if value >= 1 and total % value == 0:
        return
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    nearest = sorted(sorted(divisors, key=lambda d: abs(d - value))[:2])
    remedy = " or ".join(map(str, nearest))
    raise ValueError(f"{name} must divide {of}; got {name} {value} and {of} {total}; the nearest that do: {remedy}")


class Pooling(nn.Module, ABC):
    """Tokens `[B, N, dim]` to features `[B, num_features]`; `num_heads` must divide this width."""

    def __init__(self, num_features: int, num_heads: int = 1) -> None:
        super().__init__()
        require_divisor("num_heads", num_heads, "dim", num_features)
        self.num_features, self.num_heads = num_features, num_heads

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, num_features]` of tokens `[B, N, dim]`."""


class AttentivePooling(Pooling):
    """Pooling by M sets of weights over the tokens: one per query, head or gate.

    Attributes:
        num_own_tokens: Tokens of its own that a pooling attends before those of the image.
        v: Projection to values, of which each head has its share, where there is one.
    """

    num_own_tokens: ClassVar[int] = 0
    v: nn.Linear

    @abstractmethod
    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights `[B, M, num_own_tokens + N]` and the weighed tokens `[B, num_own_tokens + N, dim]`."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the weighted sums of values, head by head, `[B, num_heads * channels]`."""
        return pool_values(*self.attend(tokens), *split_heads(self.v, self.num_heads))

    def attention(self, tokens: Tensor) -> Tensor:
        """Return weights `[B, M, N]` of the image's tokens."""
        return self.attend(tokens)[0][..., self.num_own_tokens :]


class ProbingHead(nn.Module):
    """Pooling, batch norm, classifier: tokens `[B, N, dim]` to logits `[B, num_classes]`.

    The batch norm has no parameters and eps 1e-6 (He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022,
    appendix A.1, https://arxiv.org/abs/2111.06377); the classifier starts as theirs, at a standard deviation of 0.01.

    Attributes:
        dim: Width of the tokens.
        tokens: Which tokens the head takes, see `select_tokens`.
        pool: The pooling.
        norm: The batch norm, or the identity.
        classifier: Linear layer on features `[B, num_features]`.
    """

    def __init__(
        self, pool: Pooling, dim: int, num_classes: int, tokens: TokenKind = "patches", batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.dim = dim
        self.tokens: TokenKind = tokens
        self.pool = pool
        self.norm = nn.BatchNorm1d(pool.num_features, eps=1e-6, affine=False) if batch_norm else nn.Identity()
        self.classifier = nn.Linear(pool.num_features, num_classes)
        trunc_normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @property
    def num_features(self) -> int:
        """Width of the classifier's input."""
        return self.pool.num_features

    @property
    def has_attention(self) -> bool:
        """True if the head has `attention`."""
        return isinstance(self.pool, AttentivePooling)

    def forward(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify images.

        Args:
            tokens: `[B, N, dim]`, of the kind that `self.tokens` names.
            pre_logits: Whether to return the input of the classifier in place of logits.

        Returns:
            `[B, num_classes]`, or `[B, num_features]` before the classifier.

        Raises:
            ValueError: The tokens have another shape, or batch norm is to be trained on a single image.
        """
        self._check(tokens)
        if self.training and len(tokens) == 1 and isinstance(self.norm, nn.BatchNorm1d):
            raise ValueError(
                "batch norm needs at least 2 images in training; got 1; drop the last, smaller batch or call eval()"
            )
        features: Tensor = self.norm(self.pool(tokens))
        return features if pre_logits else self.classifier(features)

    def attention(self, tokens: Tensor) -> Tensor:
        """Return the weights `[B, M, N]` of M queries, heads or gates, with which tokens are pooled.

        They are not negative. Weights of queries and heads add up to 1 over the tokens, counting a token of the head's
        own (clip: the mean, cait: a class token), which is left out. Gates (cbam, delf, dolg) do not add up to 1. In
        training mode the call updates the statistics of batch norms of tokens, which are as in `forward`.

        Raises:
            ValueError: The tokens have another shape, or the head has no such weights.
        """
        self._check(tokens)
        if not self.has_attention:
            raise ValueError(f"{type(self.pool).__name__} has no attention to show; ask has_attention first")
        assert isinstance(self.pool, AttentivePooling)
        return self.pool.attention(tokens)

    def _check(self, tokens: Tensor) -> None:
        if tokens.dim() != 3 or tokens.shape[2] != self.dim or not tokens.shape[1]:
            raise ValueError(f"tokens must be [B, N, {self.dim}] with N at least 1; got {list(tokens.shape)}")
