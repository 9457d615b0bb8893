"""Attention over several dilated windows in one softmax: argument checks, then the choice of an implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor

from visionattn_kernels.attention.problem import Scale, autocast_inputs, scale_queries
from visionattn_kernels.multiscale import merged, native
from visionattn_kernels.multiscale.problem import check_multiscale


@overload
def multiscale_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, dilations: Sequence[int], kernel_size: int = 3, *, rpb: Tensor | None = None,
    scale: Scale = None, return_lse: Literal[False] = False, backend: str | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def multiscale_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, dilations: Sequence[int], kernel_size: int = 3, *, rpb: Tensor | None = None,
    scale: Scale = None, return_lse: Literal[True], backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def multiscale_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, dilations: Sequence[int], kernel_size: int = 3, *, rpb: Tensor | None = None,
    scale: Scale = None, return_lse: bool = False, backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Compute attention of each query over the union of several dilated windows, in one softmax.

    The window of a scale is centred on the query, and keys beyond the map do not take part (boundary "mask"). All
    scales share the centre, which counts once. Dilations 1, 2, 4, ... with 3x3 windows are PowerAttention's distances
    (arXiv 2503.03588) on maps.

    Args:
        q: Queries `[B, H, W, heads, head_dim]`.
        k: Keys `[B, H, W, heads, head_dim]`.
        v: Values `[B, H, W, heads, v_dim]`.
        dilations: Distance of neighbouring keys in each scale's window.
        kernel_size: Keys per axis of each window, an odd number.
        rpb: Relative positional bias `[heads, len(dilations), kernel_size, kernel_size]`, read at
            `(key - query) / dilation + kernel_size // 2`. The centre entry is read in the first scale only.
        scale: Factor of `q.k`, a finite number; `head_dim ** -0.5` by default. A tensor of one element has a gradient.
        return_lse: Also return the log-sum-exp of each query's scores, `[B, H, W, heads]`, in float32 or wider.
        backend: Name of a backend, which is never replaced by another; by default the first that can run. "native", the
            default on CPUs, takes one pass. All others, and so every GPU, run one call of `windowed_attention` per
            scale, whose outputs are merged by their log-sum-exps.

    Returns:
        `[B, H, W, heads, v_dim]` in q's dtype, and the log-sum-exp if asked for. Autocast applies to q, k and v as in a
        matrix product.

    Raises:
        ValueError: A tensor does not fit the others or the windows, two scales share a key besides the centre, or the
            backend cannot run the problem.
    """
    q, k, v = autocast_inputs(q, k, v)
    q, factor = scale_queries(q, scale)
    problem = check_multiscale(q, k, v, dilations, kernel_size, rpb, factor)
    if backend in (None, "native") and native.can_run(problem):
        out, lse = native.attention(problem)
    else:
        out, lse = merged.attention(problem, backend)
    return (out, lse) if return_lse else out
