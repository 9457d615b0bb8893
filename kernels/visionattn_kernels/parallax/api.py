"""The public operator: argument checks, then the choice of a backend."""

from __future__ import annotations

from torch import Tensor

from visionattn_kernels.attention import plain
from visionattn_kernels.attention.dispatch import refuse_open_sizes
from visionattn_kernels.attention.problem import Scale, autocast_inputs, check_problem, scale_queries
from visionattn_kernels.parallax import native, unfused
from visionattn_kernels.tracing import is_exporting, is_forward_mode
from visionattn_kernels.window import Window

BACKENDS = ("native", "unfused", "plain")
"""Names; the first that can run is preferred, but in `torch.export` and forward mode, which only "plain" knows."""


def parallax_attention_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    window: Window,
    *,
    rpb: Tensor | None = None,
    scale: Scale = None,
    backend: str | None = None,
) -> Tensor:
    """Compute Parallax attention (arXiv 2605.29157) of each query over the keys of its window.

    With `p = softmax(scale q.k + rpb)` and `s = r.k`, the output is `sum p (1 + d - s) v`, `d = sum p s`: attention
    minus the covariance of values and keys under `p`, times `r`. With `r = 0` it is `windowed_attention`.

    Args:
        q: Queries `[B, Q_h, Q_w, heads, head_dim]`, with `Q = ceil(H / query_stride)` (H itself by default).
        k: Keys `[B, H, W, heads, head_dim]`.
        v: Values `[B, H, W, heads, v_dim]`.
        r: Vectors of the shape of `q`; they are not scaled.
        window: Which keys a query sees.
        rpb: Relative positional bias `[heads, 2 k_h - 1, 2 k_w - 1]` of `p`, as in `windowed_attention`.
        scale: Factor of `q.k`, a finite number; `head_dim ** -0.5` by default. A tensor of one element has a gradient.
        backend: "native", fused kernels for CPUs with first-order gradients; "unfused", scores and sums on any device,
            with gradients of any order; or "plain", for `torch.export`. By default the first that can run.

    Returns:
        `[B, Q_h, Q_w, heads, v_dim]` in q's dtype. Autocast applies to q, k, v and r as in a matrix product.

    Raises:
        ValueError: A tensor does not fit the others or the window, or the backend cannot run the problem.
    """
    q, k, v, r = autocast_inputs(q, k, v, r)
    if r.shape != q.shape or r.dtype != q.dtype or r.device != q.device:
        raise ValueError(
            f"r must have q's shape, dtype and device, {list(q.shape)}, {q.dtype} and {q.device}; "
            f"got {list(r.shape)}, {r.dtype} and {r.device}"
        )
    q, factor = scale_queries(q, scale)
    problem = check_problem(q, k, v, window, rpb, factor)
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    refuse_open_sizes(problem)
    if backend == "plain" or (backend is None and (is_exporting() or is_forward_mode())):
        return plain.parallax(problem, r)
    refusal = native.can_run(problem)
    if backend == "unfused" or (backend is None and refusal is not None):
        return unfused.attention(problem, r)
    if refusal is not None:
        raise ValueError(f"no backend can run this problem (native: {refusal})")
    return native.attention(problem, r)
