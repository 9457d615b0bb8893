"""Pooling by many queries at once, on the same tokens.

Scores of efficient probing and of AIM's head are products of queries with the tokens, and what they pool are sums of
tokens; AIM's normalisation of the tokens moves into queries and values. So the queries of all copies of all such heads,
whatever their number and learning rate, make one matrix, and each product of a training step is one large product in
place of many thin ones.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from visionattn.probing.heads import ProbingHead
from visionattn.probing.heads.queries import AimPooling, EfficientProbing

CHUNK = 64
"""Pictures that are taken at a time on a CPU: what lies between two products should stay in its cache."""


class Queries(NamedTuple):
    """What L copies of a head ask of the tokens and read out of them, Σ_n softmax_n(q · x_n) W x_n + b.

    Attributes:
        queries: `[L, M, dim]`.
        values: `[L, M, channels, dim]`.
        bias: `[L, M, channels]`.
    """

    queries: Tensor
    values: Tensor
    bias: Tensor | None = None


def count_queries(head: ProbingHead) -> int:
    """M of a head that can share products with others; 0 for one that cannot."""
    if isinstance(head.pool, EfficientProbing):
        return head.pool.num_queries
    return head.pool.num_heads if isinstance(head.pool, AimPooling) else 0


class TokenBatch:
    """Tokens of one kind, and what normalises them.

    Args:
        tokens: `[B, N, dim]`; no gradient flows back to them.
    """

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens.contiguous()

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of each feature, `[dim]`."""
        x = self.tokens.flatten(0, 1)
        mean, variance = x.new_zeros(2, x.shape[1])
        F.batch_norm(x, mean, variance, training=True, momentum=1.0)  # many times as fast as torch.var_mean
        return mean, variance


def shared_logits(families: Sequence[Sequence[ProbingHead]], batch: TokenBatch) -> Tensor:
    """Classifies pictures by heads for which `count_queries` is not 0.

    Args:
        families: Heads; those of a family differ in nothing but their weights.
        batch: Tokens of the kind that all these heads take.

    Returns:
        `[L, B, num_classes]`, L heads in the order of the families.
    """
    asked = [_ask([head.pool for head in family], batch) for family in families]
    pooled = _Pool.apply(
        batch.tokens,
        torch.cat([queries.flatten(0, 1) for queries, _, _ in asked]),
        *(values.flatten(0, 1) for _, values, _ in asked),
    )
    return torch.cat([_classify(*each) for each in zip(families, pooled, (bias for _, _, bias in asked), strict=True)])


class _Pool(torch.autograd.Function):
    """Σ_n softmax_n(q_m · x_n) W_m x_n for many m.

    Autograd would give the same gradients. Here what is pooled is read while it is in the cache, its gradient is never
    whole in memory, and the products with values stand in the order in which they are fast.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, queries: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        """Pools tokens `[B, N, dim]` by queries `[M, dim]`, and projects by values `[m, channels, dim]`, Σ m = M.

        Returns:
            `[B, m, channels]` for each of the values.
        """
        B, N, dim = tokens.shape
        weights = tokens.new_empty(B, N, len(queries))
        pooled = tokens.new_empty(B, len(queries), dim)
        outputs = tuple(tokens.new_empty(B, *value.shape[:2]) for value in values)
        sizes = [len(value) for value in values]
        for part in _chunks(tokens):
            torch.softmax(F.linear(tokens[part], queries), 1, out=weights[part])
            torch.bmm(weights[part].mT, tokens[part], out=pooled[part])
            for output, value, mean in zip(outputs, values, pooled[part].split(sizes, 1), strict=True):
                output[part] = (mean.transpose(0, 1) @ value.mT).transpose(0, 1)
        ctx.save_for_backward(tokens, queries, weights, pooled, *outputs, *values)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries and values."""
        tokens, queries, weights, pooled, *others = ctx.saved_tensors
        outputs, values = others[: len(grads)], others[len(grads) :]
        sizes = [len(value) for value in values]
        grad_queries = torch.zeros_like(queries)
        grad_values = [torch.zeros_like(value) for value in values]
        # Σ_n a_n ∂a_n, which softmax takes off, without a sum over the tokens.
        shares = torch.cat([(g * y).sum(-1) for g, y in zip(grads, outputs, strict=True)], 1)[:, None]
        for part in _chunks(tokens):
            x, means = tokens[part], pooled[part].transpose(0, 1)
            grad_means = torch.empty_like(means, memory_format=torch.contiguous_format)  # [M, b, dim]
            for g, value, grad_value, mean, grad_mean in zip(
                grads, values, grad_values, means.split(sizes), grad_means.split(sizes), strict=True
            ):
                g = g[part].transpose(0, 1)
                grad_value.baddbmm_(g.mT, mean)
                torch.bmm(g, value, out=grad_mean)
            grad_scores = (x @ grad_means.permute(1, 2, 0)).sub_(shares[part]).mul_(weights[part])  # [b, N, M]
            grad_queries.addmm_(grad_scores.flatten(0, 1).T, x.flatten(0, 1))
        return None, grad_queries, *grad_values


def _chunks(tokens: Tensor) -> list[slice]:
    step = CHUNK if tokens.device.type == "cpu" else len(tokens)
    return [slice(start, start + step) for start in range(0, len(tokens), step)]


def _ask(pools: Sequence[nn.Module], batch: TokenBatch) -> Queries:
    if isinstance(pools[0], EfficientProbing):
        return _ask_ep([pool for pool in pools if isinstance(pool, EfficientProbing)])
    return _ask_aim([pool for pool in pools if isinstance(pool, AimPooling)], batch)


def _ask_ep(pools: Sequence[EfficientProbing]) -> Queries:
    queries = torch.stack([pool.queries for pool in pools]) * pools[0].scale
    return Queries(queries, _split([pool.v.weight for pool in pools], pools[0].num_queries))


def _ask_aim(pools: Sequence[AimPooling], batch: TokenBatch) -> Queries:
    num_heads = pools[0].num_heads
    query = _split([pool.query for pool in pools], num_heads)
    keys, values = (_split([getattr(pool, name).weight for pool in pools], num_heads) for name in ("k", "v"))
    mean, variance = _token_statistics([pool.norm for pool in pools], batch)  # [L or 1, dim]
    scale = (variance + pools[0].norm.eps).rsqrt()
    # Scores of the mean are the same for all tokens, so that softmax takes them off.
    queries = torch.einsum("lhd,lhdc->lhc", query * query.shape[-1] ** -0.5, keys) * scale[:, None]
    values = values * scale[:, None, None]
    return Queries(queries, values, -(values @ mean[:, None, :, None]).squeeze(-1))


def _split(parameters: Sequence[Tensor], num_heads: int) -> Tensor:
    """Stacks parameters `[heads * channels, …]` to `[L, heads, channels, …]`."""
    return torch.stack(list(parameters)).unflatten(1, (num_heads, -1))


def _token_statistics(norms: Sequence[nn.BatchNorm1d], batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Mean and variance by which batch norms normalise tokens; in training the same for all, and noted by each."""
    if not norms[0].training:
        means, variances = zip(*(_running(norm) for norm in norms), strict=True)
        return torch.stack(means), torch.stack(variances)
    mean, variance = batch.statistics
    for norm in norms:
        _note(norm, mean, variance)
    count = batch.tokens.shape[0] * batch.tokens.shape[1]
    return mean[None], variance[None] * ((count - 1) / count)


def _classify(heads: Sequence[ProbingHead], pooled: Tensor, bias: Tensor | None) -> Tensor:
    """Batch norm and classifiers on `[B, L * M, channels]`, to `[L, B, num_classes]`: one norm of L times the width."""
    features = pooled.flatten(1) if bias is None else pooled.flatten(1) + bias.flatten()
    norms = [head.norm for head in heads if isinstance(head.norm, nn.BatchNorm1d)]
    mean, variance = (torch.cat(each) for each in zip(*(_running(norm) for norm in norms), strict=True))
    features = F.batch_norm(features, mean, variance, None, None, norms[0].training, 1.0, norms[0].eps)
    if norms[0].training:
        for norm, *statistics in zip(norms, mean.chunk(len(norms)), variance.chunk(len(norms)), strict=True):
            _note(norm, *statistics)
    weight = torch.stack([head.classifier.weight for head in heads])
    offset = torch.stack([head.classifier.bias for head in heads])
    return torch.baddbmm(offset[:, None], features.unflatten(1, (len(heads), -1)).transpose(0, 1), weight.mT)


def _running(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _note(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor) -> None:
    """Updates what a batch norm keeps, by the mean and the unbiased variance of a batch."""
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    for running, found in zip(_running(norm), (mean, variance), strict=True):
        running.lerp_(found, norm.momentum)
    norm.num_batches_tracked += 1
