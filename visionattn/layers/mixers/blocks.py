"""Attention in two levels: blocks of the map by their summaries, tokens within each block."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from visionattn.layers.heads import check_positive
from visionattn.layers.mixers.packed import PackedAttention2d
from visionattn.layers.pointwise import MapLinear
from visionattn_kernels.tracing import is_exporting

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
    packed: Tensor, dim: int, num_heads: int, block_size: int, topk: int | None, is_causal: bool
) -> Tensor:
    """Compute attention in two levels; opaque to FX, because it reads shapes.

    Args:
        packed: Queries, keys and values `[B, H, W, 3 * dim]`, ordered (3, head, head_dim); before them, unless the mean
            of the keys is a block's key, `dim` channels whose mean is.
        dim: Channels of the output.
        num_heads: Attention heads.
        block_size: Edge of a block.
        topk: Other blocks that a query sees, those of the largest logits; None for all.
        is_causal: Whether a query sees no later token, row by row; blocks are then cut from the rows put end to end.

    Returns:
        `[B, H, W, dim]`.
    """
    size = packed.shape[1:3]
    if is_causal:
        packed = packed.flatten(1, 2).unsqueeze(1)
    height, width = packed.shape[1:3]
    edges = min(block_size, height), min(block_size, width)
    blocks = _to_blocks(packed, edges)  # [B, n, m, C]
    exists = _to_blocks(packed.new_ones(1, height, width, 1), edges)[0, ..., 0] > 0  # [n, m]
    n, m = exists.shape
    *landmarks, q, k, v = (x.unflatten(-1, (num_heads, -1)).movedim(-2, 1) for x in blocks.split(dim, -1))
    wide = torch.promote_types(packed.dtype, torch.float32)
    counts = exists.sum(-1).to(wide)
    keys = (landmarks[0] if landmarks else k).sum(3) / counts.to(k.dtype)[:, None]  # [B, heads, n, d]
    q, k, v = (x.flatten(2, 3) for x in (q * q.shape[-1] ** -0.5, k, v))
    place = torch.arange(n * m, device=q.device)
    step = n * m
    if not is_exporting():  # a graph is for a batch of any size
        step = max(1, min(step, MAX_SCORES // max(1, q[..., 0].numel())))
    outputs = []
    for portion in (slice(start, start + step) for start in range(0, n * m, step)):
        queries, rows = q[:, :, portion], place[portion, None]
        scores = (queries @ k.mT).to(wide).unflatten(-1, (n, m))  # [B, heads, rows, n, m]
        logits = (queries @ keys.mT).to(wide) + counts.log()  # [B, heads, rows, n]
        own = rows // m == place[:n]
        if height % edges[0] or width % edges[1]:
            scores = scores.masked_fill(~exists, -math.inf)
        if is_causal:
            later = rows[..., None] < place.view(n, m)
            scores = scores.masked_fill(later & own[..., None], -math.inf)
            logits = logits.masked_fill(later[..., 0], -math.inf)
        if topk is not None:
            logits = keep_largest(logits.masked_fill(own, -math.inf), topk)
        outputs.append(two_level_weights(scores, logits, own).to(v.dtype) @ v)
    out = torch.cat(outputs, 2).transpose(1, 2).flatten(-2)  # [B, n * m, dim]
    return _from_blocks(out, edges, (height, width)).flatten(1, 2).unflatten(1, size)


def keep_largest(logits: Tensor, count: int) -> Tensor:
    """Replace all but the `count` largest of the last dimension by minus infinity."""
    largest = logits.topk(min(count, logits.shape[-1])).indices
    return torch.full_like(logits, -math.inf).scatter(-1, largest, logits.gather(-1, largest))


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


class BlockAttention2d(PackedAttention2d):
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
        super().__init__(dim, num_heads, qkv_bias, proj_drop, device, dtype)
        check_positive(block_size=block_size)
        if summary not in get_args(Summary):
            raise ValueError(f"summary must be one of {', '.join(get_args(Summary))}; got {summary!r}")
        if topk is not None and topk < 0:
            raise ValueError(f"topk must be at least 0, or None for all blocks; got {topk}")
        self.block_size = block_size
        self.topk = topk
        self.is_causal = is_causal
        self.landmark = MapLinear(dim, dim, device=device, dtype=dtype) if summary == "landmark" else None

    def project(self, x: Tensor) -> Tensor:
        """Return the channels whose means are landmarks, and packed queries, keys and values, `[B, H, W, 4 * dim]`."""
        return self.qkv(x) if self.landmark is None else torch.cat([self.landmark(x), self.qkv(x)], -1)

    def attend(self, packed: Tensor) -> Tensor:
        """Compute attention `[B, H, W, dim]` of what `project` returns."""
        topk = None if self.training else self.topk
        dim = self.proj.in_features
        return attend_blocks(packed, dim, self.num_heads, self.block_size, topk, self.is_causal)
