"""Attention in two levels: blocks of the map by their summaries, tokens within each block."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn

from visionattn.layers.heads import check_heads
from visionattn.layers.pointwise import MapLinear

Summary = Literal["landmark", "mean"]

MAX_SCORES = 1 << 24
"""Scores that are held at once without gradients."""


def two_level_weights(scores: Tensor, logits: Tensor, own: Tensor) -> Tensor:
    """Return the weights of all tokens, `[..., blocks * tokens]`, of one softmax over own tokens and other blocks.

    Args:
        scores: Scores of tokens by block, `[..., blocks, tokens]`.
        logits: Scores of blocks `[..., blocks]`; a token has its block's weight times its softmax within the block.
        own: Whether a block is the query's own, whose tokens stand for themselves, `[..., blocks]`.
    """
    shift = torch.where(own, 0.0, logits - scores.logsumexp(-1))
    return (scores + shift[..., None]).flatten(-2).softmax(-1)


@register_notrace_function
def attend_blocks(
    qkv: Tensor, summaries: Tensor, num_heads: int, block_size: int, topk: int | None, is_causal: bool
) -> Tensor:
    """Compute attention in two levels; opaque to FX, because it reads shapes.

    Args:
        qkv: Queries, keys and values `[B, H, W, 3 * dim]`, ordered (3, head, head_dim).
        summaries: Keys of the blocks `[B, ceil(H / block_size), ceil(W / block_size), dim]`.
        num_heads: Attention heads.
        block_size: Edge of a block.
        topk: Other blocks that a query sees, those of the largest logits; None for all.
        is_causal: Whether a query sees no later token, on a map of one row.

    Returns:
        `[B, H, W, dim]`.
    """
    height, width = qkv.shape[1:3]
    edges = min(block_size, height), min(block_size, width)
    blocks = _to_blocks(qkv, edges)  # [B, n, m, 3 * dim]
    n, m = blocks.shape[1:3]
    q, k, v = blocks.flatten(1, 2).unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    keys = summaries.flatten(1, 2).unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B, heads, n, d]
    exists = _to_blocks(torch.ones_like(qkv[:1, ..., :1]), edges)[0, ..., 0] > 0  # [n, m]
    wide = torch.promote_types(q.dtype, torch.float32)
    size = exists.sum(-1).to(wide).log()
    outputs = []
    step = max(1, MAX_SCORES // q[..., 0].numel())
    q = q * q.shape[-1] ** -0.5
    for rows, queries in zip(torch.arange(n * m, device=q.device).split(step), q.split(step, 2), strict=True):
        scores = (queries @ k.mT).to(wide).unflatten(-1, (n, m))  # [B, heads, rows, n, m]
        logits = (queries @ keys.mT).to(wide) + size  # [B, heads, rows, n]
        own = rows[:, None] // m == torch.arange(n, device=q.device)
        if height % edges[0] or width % edges[1]:
            scores = scores.masked_fill(~exists, -math.inf)
        if is_causal:
            later = rows[:, None, None] < torch.arange(n * m, device=q.device).view(n, m)
            scores = scores.masked_fill(later & own[..., None], -math.inf)
            logits = logits.masked_fill(later[..., 0], -math.inf)
        if topk is not None:
            logits = keep_largest(logits.masked_fill(own, -math.inf), topk)
        outputs.append(two_level_weights(scores, logits, own).to(v.dtype) @ v)
    return _from_blocks(torch.cat(outputs, 2).transpose(1, 2).flatten(-2), edges, (height, width))


def keep_largest(logits: Tensor, count: int) -> Tensor:
    """Replace all but the `count` largest of the last dimension by minus infinity."""
    largest = logits.topk(min(count, logits.shape[-1])).indices
    return torch.full_like(logits, -math.inf).scatter(-1, largest, logits.gather(-1, largest))


def block_means(x: Tensor, block_size: int) -> Tensor:
    """Return the mean of each block of a map `[B, H, W, C]`; blocks at the border may be smaller."""
    return F.avg_pool2d(x.permute(0, 3, 1, 2), block_size, ceil_mode=True).permute(0, 2, 3, 1)


def _to_blocks(x: Tensor, edges: tuple[int, int]) -> Tensor:
    """Cut a map `[B, H, W, C]` into blocks `[B, n, m, C]`, with zeros beyond the border."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % edges[1], 0, -x.shape[1] % edges[0]))
    x = x.unflatten(2, (-1, edges[1])).unflatten(1, (-1, edges[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _from_blocks(x: Tensor, edges: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Put the tokens of blocks, `[B, n * m, C]`, back into a map of this height and width."""
    rows = -(-size[0] // edges[0])
    x = x.unflatten(1, (rows, -1, *edges)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : size[0], : size[1]]


class BlockAttention2d(nn.Module):
    """Multi-head attention to the tokens of the own block, and to other blocks by way of one summary key each.

    One softmax runs over the tokens of a query's block of g x g and the summaries of all other blocks. A token of
    another block has the weight of its summary times its softmax within the block (Landmark attention, arXiv
    2305.16300). If a block's logit were the log-sum-exp of its tokens' scores, this would be full attention.

    A summary is a linear layer of the block's mean ("landmark"), or the mean of the block's keys ("mean", the chunk
    keys of HCAM, arXiv 2105.14039, without its stop-gradient). In evaluation `topk` leaves a query its own block and
    that many others per head, and no other block has weight; it may change at any time.

    Our choices: square blocks, smaller at the border; the logarithm of a block's number of tokens is added to its
    logit, so that equal scores give equal weights to all tokens. All scores are computed, also with `topk`: time grows
    with N², and so does memory in training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        block_size: int = 4,
        summary: Summary = "landmark",
        topk: int | None = None,
        qkv_bias: bool = True,
        is_causal: bool = False,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the module.

        Args:
            dim: Channels.
            num_heads: Attention heads; must divide `dim`.
            block_size: Edge of a block, in tokens.
            summary: Key of a block, "landmark" or "mean".
            topk: Other blocks that a query sees in evaluation; None for all.
            qkv_bias: Whether the projection to queries, keys and values has a bias.
            is_causal: Whether a query sees no later token, row by row. Blocks are then of `block_size` tokens of the
                rows put end to end: a sequence is a map of one row.
            proj_drop: Dropout after the output projection.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: An argument is out of its range.
        """
        super().__init__()
        check_heads(dim, num_heads)
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1; got {block_size}")
        if summary not in get_args(Summary):
            raise ValueError(f"summary must be one of {', '.join(get_args(Summary))}; got {summary!r}")
        if topk is not None and topk < 0:
            raise ValueError(f"topk must be at least 0, or None for all blocks; got {topk}")
        self.num_heads = num_heads
        self.block_size = block_size
        self.topk = topk
        self.is_causal = is_causal
        self.qkv = MapLinear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.landmark = MapLinear(dim, dim, device=device, dtype=dtype) if summary == "landmark" else None
        self.proj = MapLinear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, H, W, dim]` to the same."""
        tokens = x.flatten(1, 2).unsqueeze(1) if self.is_causal else x
        qkv = self.qkv(tokens)
        if self.landmark is not None:
            summaries = self.landmark(block_means(tokens, self.block_size))
        else:
            summaries = block_means(qkv.chunk(3, -1)[1], self.block_size)
        topk = None if self.training else self.topk
        out = attend_blocks(qkv, summaries, self.num_heads, self.block_size, topk, self.is_causal)
        return self.proj_drop(self.proj(out)).reshape_as(x)
