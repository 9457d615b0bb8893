"""Pooling by many queries at once, on the same tokens.

Scores of efficient probing and of AIM's head are products of queries with the tokens, and what they pool are sums of
tokens; AIM's normalisation of the tokens moves into queries and values. So the queries of all copies of all such heads,
whatever their number and learning rate, make one matrix, and each product of a training step is one large product in
place of many thin ones.
"""

from abc import ABC, abstractmethod
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
"""Number of images at a time on a CPU, so that values between two products stay in its cache."""


class Queries(NamedTuple):
    """Queries `[L, M, dim]`, values `[L, M, channels, dim]` and biases `[L, M, channels]` of L copies of a head.

    They stand for Σ_n softmax_n(q · x_n) W x_n + b.
    """

    queries: Tensor
    values: Tensor
    bias: Tensor | None = None


def count_queries(head: ProbingHead) -> int:
    """Return M of a head that can share products with others; 0 for one that cannot."""
    return head.pool.num_heads if isinstance(head.pool, EfficientProbing | AimPooling) else 0


class TokenBatch:
    """Tokens of one kind `[B, N, dim]`, to which no gradient flows back, and their statistics."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens.contiguous()

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of each feature, `[dim]`."""
        x = self.tokens.flatten(0, 1)
        mean, variance = x.new_zeros(2, x.shape[1])
        F.batch_norm(x, mean, variance, training=True, momentum=1.0)  # many times as fast as torch.var_mean
        return mean, variance


class Family(ABC):
    """L heads that differ only in their weights, which are slices of stacks.

    A change of a head's weights changes the stacks and vice versa, until another family takes the head over.
    """

    def __init__(self, heads: Sequence[ProbingHead]) -> None:
        self.heads = list(heads)
        self._first = self.heads[0]
        self._parameters = {
            name: _stack([head.get_parameter(name) for head in heads]).requires_grad_()
            for name, _ in self._first.named_parameters()
        }
        self._buffers = {
            name: _stack([head.get_buffer(name) for head in heads]) for name, _ in self._first.named_buffers()
        }

    @abstractmethod
    def ask(self, batch: TokenBatch) -> Queries:
        """Return the heads' queries for tokens; in training, batch norms of tokens update their statistics."""

    def classify(self, pooled: Tensor, bias: Tensor | None) -> Tensor:
        """Return logits `[L, B, num_classes]` of `[B, L * M, channels]`, by one batch norm of L times the width."""
        features = pooled.flatten(1) if bias is None else pooled.flatten(1) + bias.flatten()
        norm = self._norm("norm")
        mean, variance = (self._buffers[f"norm.running_{name}"].flatten() for name in ("mean", "var"))
        features = F.batch_norm(features, mean, variance, None, None, norm.training, norm.momentum or 0.0, norm.eps)
        features = features.unflatten(1, (len(self.heads), -1)).transpose(0, 1)
        return _Classify.apply(features, self._parameters["classifier.weight"], self._parameters["classifier.bias"])

    def hand_out_gradients(self) -> None:
        """Give each parameter of the heads its part of the stacks' gradients."""
        for name, stack in self._parameters.items():
            if stack.grad is not None:
                for head, grad in zip(self.heads, stack.grad, strict=True):
                    head.get_parameter(name).grad = grad
                stack.grad = None

    def _norm(self, name: str) -> nn.BatchNorm1d:
        """Return a batch norm of the first head, which counts the batches of all."""
        norm = self._first.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm1d)
        if norm.training:
            self._buffers[f"{name}.num_batches_tracked"] += 1
        return norm

    def _split(self, name: str, num_heads: int) -> Tensor:
        """Return a stack of parameters `[L, heads * channels, …]` as `[L, heads, channels, …]`."""
        return self._parameters[name].unflatten(1, (num_heads, -1))


class EpFamily(Family):
    """Efficient probing."""

    def ask(self, batch: TokenBatch) -> Queries:
        """See `Family`."""
        pool = self._first.pool
        assert isinstance(pool, EfficientProbing)
        return Queries(self._parameters["pool.queries"] * pool.scale, self._split("pool.v.weight", pool.num_heads))


class AimFamily(Family):
    """AIM's head."""

    def ask(self, batch: TokenBatch) -> Queries:
        """See `Family`."""
        pool = self._first.pool
        assert isinstance(pool, AimPooling)
        names = ("pool.query", "pool.k.weight", "pool.v.weight")
        query, keys, values = (self._split(name, pool.num_heads) for name in names)
        mean, variance = self._statistics(batch)
        scale = (variance + pool.norm.eps).rsqrt()
        # Scores of the mean are the same for all tokens, so that softmax takes them off.
        queries = torch.einsum("lhd,lhdc->lhc", query * query.shape[-1] ** -0.5, keys) * scale[:, None]
        values = values * scale[:, None, None]
        return Queries(queries, values, -(values @ mean[:, None, :, None]).squeeze(-1))

    def _statistics(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Return mean and variance that normalise tokens: `[L, dim]`, or `[1, dim]` of the batch in training."""
        norm = self._norm("pool.norm")
        kept = self._buffers["pool.norm.running_mean"], self._buffers["pool.norm.running_var"]
        if not norm.training:
            return kept
        mean, variance = batch.statistics
        for running, found in zip(kept, (mean, variance), strict=True):
            running.lerp_(found, norm.momentum or 0.0)
        count = batch.tokens.shape[0] * batch.tokens.shape[1]
        return mean[None], variance[None] * ((count - 1) / count)


FAMILIES: dict[type[nn.Module], type[Family]] = {EfficientProbing: EpFamily, AimPooling: AimFamily}


def shared_logits(families: Sequence[Family], batch: TokenBatch) -> Tensor:
    """Return logits `[L, B, num_classes]` of L heads, in the order of families that take this kind of tokens.

    Gradients reach the families' stacks.
    """
    asked = [family.ask(batch) for family in families]
    pooled = _Pool.apply(
        batch.tokens,
        torch.cat([queries.flatten(0, 1) for queries, _, _ in asked]),
        *(values.flatten(0, 1) for _, values, _ in asked),
    )
    return torch.cat(
        [family.classify(part, bias) for family, part, (_, _, bias) in zip(families, pooled, asked, strict=True)]
    )


class _Pool(torch.autograd.Function):
    """Σ_n softmax_n(q_m · x_n) W_m x_n for many m.

    Autograd would give the same gradients. Here what is pooled is read while it is in the cache, its gradient is never
    whole in memory, and the products with values stand in the order in which they are fast.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, queries: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        """Pool tokens `[B, N, dim]` by queries `[M, dim]`, and project by values `[m, channels, dim]`, Σ m = M.

        Returns:
            `[B, m, channels]` for each of the values.
        """
        outputs = tuple(tokens.new_empty(len(tokens), *value.shape[:2]) for value in values)
        sizes = [len(value) for value in values]
        kept = []
        for part in _chunks(tokens):
            weights = F.linear(tokens[part], queries).softmax(1)  # [b, N, M]
            pooled = weights.mT @ tokens[part]  # [b, M, dim]
            for output, value, mean in zip(outputs, values, pooled.split(sizes, 1), strict=True):
                output[part] = (mean.transpose(0, 1) @ value.mT).transpose(0, 1)
            kept += [weights, pooled]
        ctx.save_for_backward(tokens, queries, *values, *outputs, *kept)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries and values."""
        tokens, queries, *others = ctx.saved_tensors
        values, outputs, kept = others[: len(grads)], others[len(grads) : 2 * len(grads)], others[2 * len(grads) :]
        sizes = [len(value) for value in values]
        grad_queries = torch.zeros_like(queries)
        grad_values = [torch.zeros_like(value) for value in values]
        # Σ_n a_n ∂a_n, which softmax takes off, without a sum over the tokens.
        shares = torch.cat([(g * y).sum(-1) for g, y in zip(grads, outputs, strict=True)], 1)[:, None]
        for part, weights, pooled in zip(_chunks(tokens), kept[::2], kept[1::2], strict=True):
            x, means = tokens[part], pooled.transpose(0, 1)
            grad_means = torch.empty_like(means, memory_format=torch.contiguous_format)  # [M, b, dim]
            for g, value, grad_value, mean, grad_mean in zip(
                grads, values, grad_values, means.split(sizes), grad_means.split(sizes), strict=True
            ):
                g = g[part].transpose(0, 1)
                grad_value.baddbmm_(g.mT, mean)
                torch.bmm(g, value, out=grad_mean)
            grad_scores = (x @ grad_means.permute(1, 2, 0)).sub_(shares[part]).mul_(weights)  # [b, N, M]
            grad_queries.addmm_(grad_scores.flatten(0, 1).T, x.flatten(0, 1))
        return None, grad_queries, *grad_values


class _Classify(torch.autograd.Function):
    """W x + b for L classifiers; autograd's products would have as few columns as classes, which is slow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return `[L, B, C]` of features `[L, B, F]`, weights `[L, C, F]` and biases `[L, C]`."""
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias[..., None], weight, x.mT).mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of all three."""
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.mT @ x, grad.sum(1)


def _chunks(tokens: Tensor) -> list[slice]:
    step = CHUNK if tokens.device.type == "cpu" else len(tokens)
    return [slice(start, start + step) for start in range(0, len(tokens), step)]


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Return a stack of tensors, which become its slices."""
    stack = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, part in zip(tensors, stack, strict=True):
        tensor.data = part
    return stack
