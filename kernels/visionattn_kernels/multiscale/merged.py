"""One call of windowed attention per scale, merged by their log-sum-exps: for every backend, and the definition.

Attention over disjoint sets of keys is the sum of the attention over each, weighted by the softmax of the sets'
log-sum-exps. All scales share the centre, so its bias is `OFF` in all but the first, whose log-sum-exp is no less than
the centre's score: the weight of the other centres is zero in every precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels.attention.api import windowed_attention
from visionattn_kernels.multiscale.problem import MultiscaleProblem
from visionattn_kernels.operators import accumulation_dtype
from visionattn_kernels.tracing import without_autocast

OFF = -3e4
"""Within the range of half precision."""


def attention(problem: MultiscaleProblem, backend: str | None) -> tuple[Tensor, Tensor]:
    """Compute output and log-sum-exp of the union of all windows.

    Args:
        problem: What to compute.
        backend: Name of the backend of each call; by default the first that can run.
    """
    p, dtype = problem, accumulation_dtype(problem.q.dtype)
    with without_autocast(p.q.device):
        parts = [
            windowed_attention(
                p.q, p.k, p.v, p.window(i), rpb=_table(p, i), scale=p.scale, return_lse=True, backend=backend
            )
            for i in range(len(p.dilations))
        ]
        lses = torch.stack([lse for _, lse in parts], -1)
        weights = lses.softmax(-1).unsqueeze(-2)
        out = sum(weight * out.to(dtype) for weight, (out, _) in zip(weights.unbind(-1), parts, strict=True))
        assert isinstance(out, Tensor)
        return out.to(p.q.dtype), lses.logsumexp(-1)


def _table(problem: MultiscaleProblem, scale: int) -> Tensor | None:
    """Return the bias table of one scale, as `windowed_attention` reads it."""
    p, margin = problem, problem.kernel_size // 2
    if scale == 0:
        return None if p.rpb is None else F.pad(p.rpb[:, 0], (margin,) * 4)
    if p.rpb is None:
        dtype = accumulation_dtype(p.q.dtype)
        table = torch.zeros(p.k.shape[3], p.kernel_size, p.kernel_size, dtype=dtype, device=p.q.device)
    else:
        table = p.rpb[:, scale]
    place = torch.arange(p.kernel_size**2, device=p.q.device).view(p.kernel_size, p.kernel_size)
    return F.pad(table.masked_fill(place == p.kernel_size**2 // 2, OFF), (margin,) * 4)
