"""Attention with few queries and many tokens, in the order that costs least: pool first, project second.

A head h with query q_h, keys W_k x_n + b_k and values W_v x_n + b_v gives

    Σ_n softmax_n(q_h · (W_k x_n + b_k)) (W_v x_n + b_v)

Both projections are linear, so W_k moves to the query and W_v behind the sum, which adds up to 1 and leaves b_v as it
is. No key and no value is ever made: per head there are one product with the tokens, one sum of them, and projections
of single vectors. Efficient probing (arXiv 2506.10178) with 32 queries takes 10 million multiply-adds per image of
196 tokens of width 768 in place of 121 million.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def split_heads(linear: nn.Linear, num_heads: int = 1) -> tuple[Tensor, Tensor | None]:
    """Return the weight `[heads, head_dim, dim]` of a projection, and its bias `[heads, head_dim]` if there is one."""
    bias = None if linear.bias is None else linear.bias.unflatten(0, (num_heads, -1))
    return linear.weight.unflatten(0, (num_heads, -1)), bias


def attend(query: Tensor, tokens: Tensor, offset: Tensor | None = None) -> Tensor:
    """Return weights `[B, M, N]`, softmax_n(query · x_n + offset).

    The scaled query is `[M, dim]`, or `[B, M, dim]` if every image has its own. Tokens are `[B, N, dim]`; the offset
    `[M, 1]` or `[B, M, 1]` is added to the scores.
    """
    # Queries that all images share make one matrix product of the batch.
    scores = F.linear(tokens, query).mT if query.dim() == 2 else query @ tokens.mT
    if offset is not None:
        scores = scores + offset
    return scores.softmax(-1)


def attend_keys(query: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return weights `[B, heads, N]`, softmax_n(q_h · (W_h x_n + b_h) / √head_dim), without making keys.

    The query is `[heads, head_dim]`, or `[B, heads, head_dim]` if every image has its own; the projection to keys
    `[heads, head_dim, dim]`, or `[1, head_dim, dim]` if heads share it. The bias `[heads, head_dim]` changes no weight,
    as it adds the same to all scores of a query; it takes part so that it has a gradient, which is 0.
    """
    query = query * query.shape[-1] ** -0.5
    folded = torch.einsum("...hd,hdc->...hc", query, weight)
    return attend(folded, tokens, None if bias is None else (query * bias).sum(-1, keepdim=True))


def pool_values(weights: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return concat_h Σ_n a_hn (W_h x_n + b_h) `[B, heads * head_dim]`, without making values.

    Weights `[B, heads, N]` add up to 1 over N. The projection is `[heads, head_dim, dim]`, or `[1, head_dim, dim]` if
    heads share it, and the bias `[heads, head_dim]`.
    """
    pooled = weights @ tokens  # [B, heads, dim]
    values = torch.einsum("bhc,hdc->bhd", pooled, weight)
    return (values if bias is None else values + bias).flatten(1)
