"""Unfused attention: scores by batched matrix products, a softmax, and the weighted sums by products again.

All scores are held in memory, `k_h * k_w` per query, in float32 or wider. In exchange every gradient can be
differentiated again, and each step is open: see `neighborhood_qk_2d` and `neighborhood_av_2d`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.operators import accumulation_dtype
from visionattn_kernels.tracing import without_autocast
from visionattn_kernels.unfused import products
from visionattn_kernels.unfused.slots import finish_scores


def can_run(problem: Problem) -> str | None:
    """Return why this backend cannot run the problem, or None."""
    return problem.refuse_dtype(torch.float16, torch.bfloat16, torch.float32, torch.float64)


def attention(problem: Problem, need_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Compute `softmax(scale q.k + bias) v` over each query's window; see `Problem` for the shapes."""
    p, size = problem, problem.size
    with without_autocast(p.q.device):
        dtype = accumulation_dtype(p.q.dtype)  # scores need its range, weights its precision
        q, k, v = p.q.to(dtype) * p.scale, p.k.to(dtype), p.v.to(dtype)
        scores = products.qk(q, k, p.window, size)
        scores = finish_scores(scores, p.window, size, p.rpb, p.rel_h, p.rel_w)
        slots = scores.shape[-1]
        if p.extra_k is not None:
            scores = torch.cat([scores, torch.einsum("byxnc,bmnc->byxnm", q, p.extra_k.to(dtype))], -1)
        probs = scores.softmax(-1)
        out = products.av(probs[..., :slots], v, p.window, size)
        if p.extra_v is not None:
            out = out + torch.einsum("byxnm,bmnc->byxnc", probs[..., slots:], p.extra_v.to(dtype))
        return out.to(p.v.dtype), scores.logsumexp(-1) if need_lse else None
