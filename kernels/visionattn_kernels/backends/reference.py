"""The oracle: an explicit mask over all keys and a plain softmax.

Differentiable to any order in forward and reverse mode, in any floating dtype, on any device; its memory grows with
the square of the map. Every other backend is tested against it in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels.problem import Problem


def can_run(problem: Problem) -> str | None:
    """The reason why this backend cannot run the problem: there is none."""
    return None


def attention(problem: Problem, need_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Computes `softmax(scale q.k + bias) v` over each query's window; see `Problem` for the shapes."""
    q, k, v = problem.q, problem.k, problem.v
    size = (k.shape[1], k.shape[2])
    (see_h, offset_h), (see_w, offset_w) = (
        tuple(x.to(q.device) for x in axis.visible(length))
        for axis, length in zip(problem.window.axes, size, strict=True)
    )
    margin_h, margin_w = (axis.margin(length) for axis, length in zip(problem.window.axes, size, strict=True))
    k, v = (F.pad(x, (0, 0, 0, 0, margin_w, margin_w, margin_h, margin_h)) for x in (k, v))

    # Letters: b batch, n heads, y x query, i j key, m extra key, c channel.
    scores = problem.scale * torch.einsum("byxnc,bijnc->bnyxij", q, k)
    if problem.rpb is not None:
        scores = scores + problem.rpb[:, offset_h[:, None, :, None], offset_w[None, :, None, :]]
    if problem.rel_h is not None:
        scores = scores + _look_up(problem.rel_h, offset_h[:, None, :])[..., :, None]
    if problem.rel_w is not None:
        scores = scores + _look_up(problem.rel_w, offset_w[None, :, :])[..., None, :]
    visible = see_h[:, None, :, None] & see_w[None, :, None, :]
    scores = scores.masked_fill(~visible, -torch.inf).flatten(-2)
    if problem.extra_k is not None:
        scores = torch.cat([scores, problem.scale * torch.einsum("byxnc,bmnc->bnyxm", q, problem.extra_k)], -1)

    probs = scores.softmax(-1)
    num_keys = visible.shape[2] * visible.shape[3]
    out = torch.einsum("bnyxk,bknc->byxnc", probs[..., :num_keys], v.flatten(1, 2))
    if problem.extra_v is not None:
        out = out + torch.einsum("bnyxm,bmnc->byxnc", probs[..., num_keys:], problem.extra_v)
    lse = scores.logsumexp(-1).permute(0, 2, 3, 1)
    return out, lse.to(torch.promote_types(lse.dtype, torch.float32))


def _look_up(logits: Tensor, offset: Tensor) -> Tensor:
    """Per-query logits `[B, Y, X, heads, R]` at the offsets `[Y, X, keys]` (broadcast): `[B, heads, Y, X, keys]`."""
    logits = logits.permute(0, 3, 1, 2, 4)
    return logits.gather(-1, offset.expand(*logits.shape[:-1], -1))
