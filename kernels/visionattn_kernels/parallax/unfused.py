"""Parallax attention by its halves: two scores and one sum of values, as operators; gradients of any order."""

from __future__ import annotations

from torch import Tensor

from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.operators import accumulation_dtype
from visionattn_kernels.tracing import without_autocast
from visionattn_kernels.unfused import products
from visionattn_kernels.unfused.slots import finish_scores


def attention(problem: Problem, r: Tensor) -> Tensor:
    """Compute Parallax attention; see `parallax_attention_2d`."""
    p, window, size = problem, problem.window, problem.size
    with without_autocast(p.q.device):  # it would round what is accumulated
        q, k, v, r = (x.to(accumulation_dtype(x.dtype)) for x in (p.q, p.k, p.v, r))
        scores = finish_scores(products.qk(q * p.scale, k, window, size), window, size, p.rpb)
        probs = scores.softmax(-1)  # 0 at slots that do not exist
        slopes = products.qk(r, k, window, size)  # 0 there too
        weights = probs * (1 + (probs * slopes).sum(-1, keepdim=True) - slopes)
        return products.av(weights, v, window, size).to(p.q.dtype)
