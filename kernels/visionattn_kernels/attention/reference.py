"""The definition: an explicit mask over all keys and a plain softmax.

Differentiable to any order in forward and reverse mode, in any floating dtype, on any device; its memory grows with
the square of the map. Half precision is computed in float32. Every other backend is tested against it in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.operators import accumulation_dtype
from visionattn_kernels.selected import products, sums
from visionattn_kernels.tracing import without_autocast


def can_run(problem: Problem) -> str | None:
    """Return None: it runs every problem."""
    return None


def attention(problem: Problem, need_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Compute `softmax(scale q.k + bias) v` over each query's window; see `Problem` for the shapes."""
    with without_autocast(problem.q.device):  # it would round what is accumulated
        out, lse = _attend(problem)
        return out, lse if need_lse else None


def _attend(problem: Problem) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(problem.q.dtype)
    tensors = {name: x.to(dtype) for name, x in problem.tensors.items()}
    axes = tuple(zip(problem.window.axes, problem.size, strict=True))
    (see_h, offset_h), (see_w, offset_w) = (
        tuple(x.to(problem.q.device) for x in axis.visible(length)) for axis, length in axes
    )
    margin_h, margin_w = (axis.margin(length) for axis, length in axes)
    k, v = (F.pad(tensors[name], (0, 0, 0, 0, margin_w, margin_w, margin_h, margin_h)) for name in "kv")
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (tensors["q"], k, v))  # [B, heads, positions, c]
    seen = (see_h[:, None, :, None] & see_w[None, :, None, :]).flatten(2).flatten(0, 1)  # [queries, keys]

    # Letters: b batch, n heads, y x query, i j key.
    scores = problem.scale * products(q, k, seen)
    scores = scores.unflatten(2, (len(see_h), len(see_w))).unflatten(4, (see_h.shape[1], see_w.shape[1]))  # bnyxij
    if "rpb" in tensors:
        scores = scores + tensors["rpb"][:, offset_h[:, None, :, None], offset_w[None, :, None, :]]
    if "rel_h" in tensors:
        scores = scores + _look_up(tensors["rel_h"], offset_h[:, None, :])[..., :, None]
    if "rel_w" in tensors:
        scores = scores + _look_up(tensors["rel_w"], offset_w[None, :, :])[..., None, :]
    scores = scores.flatten(4).flatten(2, 3).masked_fill(~seen, -torch.inf)
    if "extra_k" in tensors:
        scores = torch.cat([scores, problem.scale * q @ tensors["extra_k"].transpose(1, 2).mT], -1)

    probs = scores.softmax(-1)
    out = sums(probs[..., : len(seen.T)].masked_fill(~seen, 0), v, seen)
    if "extra_v" in tensors:
        out = out + probs[..., len(seen.T) :] @ tensors["extra_v"].transpose(1, 2)
    size = problem.q.shape[1:3]
    lse = scores.logsumexp(-1).transpose(1, 2).unflatten(1, size)
    return out.transpose(1, 2).unflatten(1, size).to(problem.q.dtype), lse


def _look_up(logits: Tensor, offset: Tensor) -> Tensor:
    """Look up logits `[B, Y, X, heads, R]` at the offsets `[Y, X, keys]` (broadcast): `[B, heads, Y, X, keys]`."""
    logits = logits.permute(0, 3, 1, 2, 4)
    return logits.gather(-1, offset.expand(*logits.shape[:-1], -1))
