"""Tiles of queries against their joint key window, as batched matrix products: the CPU default; runs anywhere.

Neighbouring queries see almost the same keys. A rectangle of them is gathered beside the union of their windows, and
one product gives all its scores, of which a mask keeps the ones inside each window. Tiles are taken a few megabytes of
scores at a time, so memory beyond inputs and outputs is bounded; backward recomputes the scores. Gradients of keys are
summed by looking up, for every key, the tile slots that hold it, so the result does not depend on the order of threads.

Shape letters: T tiles of a map, u tiles of a chunk, q queries of a tile, k keys of a tile, M extra keys, c channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels.attention.fused import register
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.operators import accumulation_dtype
from visionattn_kernels.selected import sum_seen, until_clean
from visionattn_kernels.window import TiledMap, choose_tile, plan_tiles
from visionattn_kernels.window.tiles import slices


def can_run(problem: Problem) -> str | None:
    """Return why this backend cannot run the problem, or None."""
    return problem.refuse_dtype(torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class _Chunk:
    """A run of tiles, flat over (batch * heads, T), with what they hold."""

    tiles: slice
    head: Tensor  # [u] batch * heads + head
    pattern: Tensor  # [u] row of the plan's patterns
    bias: Tensor  # [u] row of the bias table
    query: Tensor  # [u, q] rows of the flattened query tensors
    q: Tensor  # [u, q, c]
    k: Tensor  # [u, k + M, c]
    v: Tensor  # [u, k + M, c]
    padding: Tensor | None  # [u, q] queries that repeat another one
    offset_h: Tensor | None  # [u, q, k_h] entries of rel_h
    offset_w: Tensor | None  # [u, q, k_w] entries of rel_w


class _Tiles(TiledMap):
    """A problem beside its plan: gathers chunks of tiles from heads-last tensors and puts results back."""

    def __init__(self, problem: Problem) -> None:
        p = problem
        plan = plan_tiles(p.window, p.size, choose_tile(p.window, p.size, True), p.k.device)
        super().__init__(plan, p.size, p.k, accumulation_dtype(p.q.dtype))
        self.problem = problem
        self.num_extra = 0 if p.extra_k is None else p.extra_k.shape[1]
        self.q, self.k, self.v = self.rows(p.q), self.rows(p.k), self.rows(p.v)
        self.rel_h = None if p.rel_h is None else self.rows(p.rel_h)
        self.rel_w = None if p.rel_w is None else self.rows(p.rel_w)
        self.extra_k = None if p.extra_k is None else p.extra_k.transpose(1, 2).flatten(0, 1).to(self.dtype)
        self.extra_v = None if p.extra_v is None else p.extra_v.transpose(1, 2).flatten(0, 1).to(self.dtype)
        self.bias = self._bias_table()

    def rows(self, x: Tensor) -> Tensor:
        """Flatten a heads-last tensor to a matrix `[B * positions * heads, c]`, in the dtype of the computation."""
        return x.reshape(-1, x.shape[-1]).to(self.dtype)

    def chunks(self, heads: slice | None = None) -> Iterator[_Chunk]:
        """Iterate over the tiles of some `batch * heads`, by default of all, a bounded number of scores at a time."""
        plan, heads = self.plan, heads or slice(0, self.num_heads)
        step = self.SCORES_PER_CHUNK // (self.num_queries * (self.num_keys + self.num_extra))
        for units in slices(heads.start * self.num_tiles, heads.stop * self.num_tiles, step):
            unit = torch.arange(units.start, units.stop, device=self.k.device)
            head, tile = unit // self.num_tiles, unit % self.num_tiles
            pattern, query = plan.pattern[tile], self.query_rows(head[:, None], tile)
            key = self.key_rows(head[:, None], tile)
            k, v = self.gather_keys(key, self.k, tile), self.gather_keys(key, self.v, tile)
            yield _Chunk(
                tiles=units,
                head=head,
                pattern=pattern,
                bias=pattern if self.problem.rpb is None else head % self.heads * len(plan.visible) + pattern,
                query=query,
                q=F.embedding(query, self.q),
                k=k if self.extra_k is None else torch.cat([k, self.extra_k[head]], 1),
                v=v if self.extra_v is None else torch.cat([v, self.extra_v[head]], 1),
                padding=None if plan.padding is None else plan.padding[tile],
                offset_h=None if self.rel_h is None else plan.offset_h[pattern],
                offset_w=None if self.rel_w is None else plan.offset_w[pattern],
            )

    def seen(self, chunk: _Chunk) -> Tensor:
        """Return whether a query sees a key, `[u, q, k + M]`."""
        return F.pad(self.plan.visible[chunk.pattern], (0, self.num_extra), value=True)

    def scores(self, chunk: _Chunk, seen: Tensor | None) -> Tensor:
        """Compute scaled products, mask and biases, `[u, q, k + M]`; a mask that is `seen` hides NaN as well."""
        scores = self.bias.index_select(0, chunk.bias).baddbmm_(chunk.q, chunk.k.mT, alpha=self.problem.scale)
        if chunk.offset_h is not None and self.rel_h is not None:
            self.by_axis(scores).add_(F.embedding(chunk.query, self.rel_h).gather(-1, chunk.offset_h)[..., :, None])
        if chunk.offset_w is not None and self.rel_w is not None:
            self.by_axis(scores).add_(F.embedding(chunk.query, self.rel_w).gather(-1, chunk.offset_w)[..., None, :])
        return scores if seen is None else scores.masked_fill_(~seen, -torch.inf)

    def by_axis(self, scores: Tensor) -> Tensor:
        """Return the window's part of `[u, q, k + M]` scores as a view `[u, q, k_h, k_w]`."""
        return scores[..., : self.num_keys].unflatten(-1, self.plan.size[1])

    def untile(self, tiles: Tensor) -> Tensor:
        """Put query tiles `[B * heads * T, q, c]` to heads-last `[B * Q * heads, c]`."""
        head = torch.arange(self.num_heads, device=tiles.device).view(self.batch, 1, self.heads)
        return F.embedding(head * self.plan.query.numel() + self.plan.slot[:, None], tiles.flatten(0, 1))

    def _bias_table(self) -> Tensor:
        """Return mask and bias of each tile pattern: `[C, q, k + M]`, or `[heads * C, q, k + M]` with a bias."""
        visible = F.pad(self.plan.visible, (0, self.num_extra), value=True)
        bias = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device).masked_fill_(~visible, -torch.inf)
        if self.problem.rpb is None:
            return bias
        rpb = self.problem.rpb.to(self.dtype).flatten(1)[:, self._rpb_index()]
        return (F.pad(rpb, (0, self.num_extra)) + bias).flatten(0, 1)

    def sum_bias(self, table: Tensor) -> Tensor:
        """Sum the gradient of the bias table to that of rpb: `[heads, (2 k_h - 1) * (2 k_w - 1)]`."""
        rpb, table = self.problem.rpb, table[..., : self.num_keys]
        assert rpb is not None
        index = self._rpb_index().flatten()
        return table.new_zeros(rpb.flatten(1).shape).index_add_(1, index, table.reshape(len(rpb), -1))

    def _rpb_index(self) -> Tensor:
        """Return the entry of the flattened rpb table for each pattern, query and key: `[C, q, k]`."""
        row = self.plan.offset_h * (2 * self.problem.window.kernel_size[1] - 1)
        return (row[..., :, None] + self.plan.offset_w[..., None, :]).flatten(-2)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Compute output and log-sum-exp; see `fused.Forward`."""
    tiles = _Tiles(problem)
    out = tiles.v.new_empty(tiles.num_heads * tiles.num_tiles, tiles.num_queries, tiles.v.shape[-1])
    lse = out.new_empty(*out.shape[:2], 1)
    for chunk in tiles.chunks():
        out[chunk.tiles], lse[chunk.tiles] = until_clean(partial(_attend, tiles, chunk), out.device)
    shape = problem.q.shape[:-1]
    return tiles.untile(out).view(*shape, out.shape[-1]).to(problem.v.dtype), tiles.untile(lse).view(shape)


def _attend(tiles: _Tiles, chunk: _Chunk, selects: bool) -> tuple[Tensor, Tensor]:
    """Compute output `[u, q, c]` and log-sum-exp `[u, q, 1]`; see `until_clean`."""
    seen = tiles.seen(chunk) if selects else None
    scores = tiles.scores(chunk, seen)
    probs = scores.softmax(-1)
    # The largest probability is exp(largest score - lse).
    lse = scores.amax(-1, keepdim=True) - probs.amax(-1, keepdim=True).log()
    if seen is not None:
        probs.masked_fill_(~seen, 0)
    return _multiply(probs, chunk.v, seen), lse


def _multiply(weights: Tensor, rows: Tensor, seen: Tensor | None, out: Tensor | None = None) -> Tensor:
    if seen is None:
        return torch.bmm(weights, rows, out=out)
    total = sum_seen(weights, rows, seen)
    return total if out is None else out.copy_(total)


def backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> list[Tensor | None]:
    """Compute the gradients of all tensors; see `fused.Backward`."""
    tiles = _Tiles(problem)
    scale, num_keys = tiles.problem.scale, tiles.num_keys
    out_rows = tiles.rows(grad_out)
    lse_rows = None if grad_lse is None else tiles.rows(grad_lse[..., None])

    def query_tiles(x: Tensor | None) -> Tensor | None:
        num_tiles = tiles.num_heads * tiles.num_tiles
        return None if x is None else x.new_zeros(num_tiles, tiles.num_queries, x.shape[-1])

    grad_q, grad_rel_h, grad_rel_w = query_tiles(tiles.q), query_tiles(tiles.rel_h), query_tiles(tiles.rel_w)
    grad_bias = None if tiles.problem.rpb is None else torch.zeros_like(tiles.bias)
    grad_extra_k, grad_extra_v = (None if x is None else torch.zeros_like(x) for x in (tiles.extra_k, tiles.extra_v))
    grad_k, grad_v = (x.new_empty(tiles.num_heads, tiles.num_positions, x.shape[-1]) for x in (tiles.k, tiles.v))
    assert grad_q is not None

    for heads in tiles.group_heads(tiles.k.shape[-1] + tiles.v.shape[-1]):
        first = heads.start * tiles.num_tiles
        shape = (heads.stop * tiles.num_tiles - first, num_keys + tiles.num_extra)
        tile_k, tile_v = (x.new_empty(*shape, x.shape[-1]) for x in (tiles.k, tiles.v))
        for chunk in tiles.chunks(heads):
            here = slice(chunk.tiles.start - first, chunk.tiles.stop - first)
            grad = F.embedding(chunk.query, out_rows)
            grad_lse_tile = None if lse_rows is None else F.embedding(chunk.query, lse_rows)
            differentiate = partial(_differentiate, tiles, chunk, grad, grad_lse_tile)
            grad_q[chunk.tiles], probs, grad_scores, seen = until_clean(differentiate, grad.device)
            if chunk.padding is not None:
                grad.masked_fill_(chunk.padding[..., None], 0)
                grad_scores.masked_fill_(chunk.padding[..., None], 0)

            seen_by = None if seen is None else seen.mT
            _multiply(probs.mT, grad, seen_by, out=tile_v[here])
            _multiply(grad_scores.mT, chunk.q, seen_by, out=tile_k[here])
            if grad_bias is not None:
                grad_bias.index_add_(0, chunk.bias, grad_scores)
            if grad_rel_h is not None and chunk.offset_h is not None:
                grad_rel_h[chunk.tiles].scatter_add_(-1, chunk.offset_h, tiles.by_axis(grad_scores).sum(-1))
            if grad_rel_w is not None and chunk.offset_w is not None:
                grad_rel_w[chunk.tiles].scatter_add_(-1, chunk.offset_w, tiles.by_axis(grad_scores).sum(-2))
            if grad_extra_k is not None and grad_extra_v is not None:
                grad_extra_k.index_add_(0, chunk.head, tile_k[here, num_keys:])
                grad_extra_v.index_add_(0, chunk.head, tile_v[here, num_keys:])
        grad_k[heads], grad_v[heads] = (tiles.sum_keys(x[:, :num_keys]) for x in (tile_k, tile_v))

    def heads_last(x: Tensor) -> Tensor:
        return x.unflatten(0, (tiles.batch, tiles.heads)).transpose(1, 2)

    return [
        tiles.untile(grad_q) * scale,
        heads_last(grad_k) * scale,
        heads_last(grad_v),
        None if grad_bias is None else tiles.sum_bias(grad_bias),
        None if grad_rel_h is None else tiles.untile(grad_rel_h),
        None if grad_rel_w is None else tiles.untile(grad_rel_w),
        None if grad_extra_k is None else heads_last(grad_extra_k) * scale,
        None if grad_extra_v is None else heads_last(grad_extra_v),
    ]


def _differentiate(
    tiles: _Tiles, chunk: _Chunk, grad: Tensor, grad_lse: Tensor | None, selects: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute gradient of queries, probabilities, gradient of scores, and the mask if it `selects`.

    A key that a query does not see gets nothing but zeros from it, unless the gradient of the query is NaN.
    """
    seen = tiles.seen(chunk) if selects else None
    probs, grad_probs = tiles.scores(chunk, seen).softmax(-1), torch.bmm(grad, chunk.v.mT)
    if seen is not None:
        grad_probs.masked_fill_(~seen, 0)
    # Private: torch has no public function for the gradient of softmax from its output alone.
    grad_scores = torch.ops.aten._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
    if grad_lse is not None:
        grad_scores.addcmul_(probs, grad_lse)
    if seen is not None:
        probs.masked_fill_(~seen, 0)
        grad_scores.masked_fill_(~seen, 0)
    return _multiply(grad_scores, chunk.k, seen), probs, grad_scores, seen


attention = register("tiled", forward, backward)
