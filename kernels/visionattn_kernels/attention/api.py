"""The public attention operators: argument checks, then dispatch.

All of them are `windowed_attention` with another `Window`. Maps are heads-last, `[B, H, W, heads, head_dim]`; a window
argument is an int, or one value per axis. Every argument error is a ValueError that names the argument.
"""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from visionattn_kernels.attention import dispatch
from visionattn_kernels.attention.problem import Scale, autocast_inputs, check_dims_1d, check_problem, scale_queries
from visionattn_kernels.window import BoolOrPair, IntOrPair, Window


@overload
def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, window: Window, *, rpb: Tensor | None = None, rel_h: Tensor | None = None,
    rel_w: Tensor | None = None, extra_k: Tensor | None = None, extra_v: Tensor | None = None, scale: Scale = None,
    return_lse: Literal[False] = False, backend: str | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, window: Window, *, rpb: Tensor | None = None, rel_h: Tensor | None = None,
    rel_w: Tensor | None = None, extra_k: Tensor | None = None, extra_v: Tensor | None = None, scale: Scale = None,
    return_lse: Literal[True], backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, window: Window, *, rpb: Tensor | None = None, rel_h: Tensor | None = None,
    rel_w: Tensor | None = None, extra_k: Tensor | None = None, extra_v: Tensor | None = None, scale: Scale = None,
    return_lse: bool, backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Window,
    *,
    rpb: Tensor | None = None,
    rel_h: Tensor | None = None,
    rel_w: Tensor | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    scale: Scale = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute attention of each query over the keys of its window: `softmax(scale q.k + bias) v`.

    Args:
        q: Queries `[B, Q_h, Q_w, heads, head_dim]`, with `Q = ceil(H / query_stride)` (H itself by default).
        k: Keys `[B, H, W, heads, head_dim]`.
        v: Values `[B, H, W, heads, v_dim]`.
        window: Which keys a query sees.
        rpb: Relative positional bias `[heads, 2 k_h - 1, 2 k_w - 1]`, read at `(key - query) / dilation + k - 1`.
        rel_h: Logits of each query by row offset, `[B, Q_h, Q_w, heads, 2 k_h - 1]`, read at the same index and added
            (the decomposed relative position of HaloNet, BoTNet and MViT).
        rel_w: Logits of each query by column offset, `[B, Q_h, Q_w, heads, 2 k_w - 1]`.
        extra_k: Keys `[B, M, heads, head_dim]` that every query also sees, in the same softmax (class tokens).
        extra_v: Values `[B, M, heads, v_dim]` of `extra_k`.
        scale: Factor of `q.k`, a finite number; `head_dim ** -0.5` by default. A tensor of one element has a gradient.
        return_lse: Also return the log-sum-exp of each query's scores, `[B, Q_h, Q_w, heads]`, in float32 or wider.
        backend: Name of a backend, which is never replaced by another; by default the first that can run.

    Returns:
        `[B, Q_h, Q_w, heads, v_dim]` in q's dtype, and the log-sum-exp if asked for. Autocast applies to q, k, v and
        the extra tokens as in a matrix product.

    Raises:
        ValueError: A tensor does not fit the others or the window, or the backend cannot run the problem.
    """
    q, k, v = autocast_inputs(q, k, v)
    if extra_k is not None and extra_v is not None:
        extra_k, extra_v = autocast_inputs(extra_k, extra_v)
    q, factor = scale_queries(q, scale)
    problem = check_problem(q, k, v, window, rpb, factor, rel_h, rel_w, extra_k, extra_v, return_lse)
    out, lse = dispatch.choose(problem, backend).attention(problem, return_lse)
    return out if lse is None else (out, lse)


@overload
def neighborhood_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: IntOrPair, stride: IntOrPair = 1, dilation: IntOrPair = 1,
    is_causal: BoolOrPair = False, rpb: Tensor | None = None, scale: Scale = None, return_lse: Literal[False] = False,
    backend: str | None = None, *, rel_h: Tensor | None = None, rel_w: Tensor | None = None,
    extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def neighborhood_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: IntOrPair, stride: IntOrPair = 1, dilation: IntOrPair = 1,
    is_causal: BoolOrPair = False, rpb: Tensor | None = None, scale: Scale = None, *, return_lse: Literal[True],
    backend: str | None = None, rel_h: Tensor | None = None, rel_w: Tensor | None = None,
    extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def neighborhood_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: IntOrPair, stride: IntOrPair = 1, dilation: IntOrPair = 1,
    is_causal: BoolOrPair = False, rpb: Tensor | None = None, scale: Scale = None, return_lse: bool = False,
    backend: str | None = None, *, rel_h: Tensor | None = None, rel_w: Tensor | None = None,
    extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Compute neighborhood attention (NAT arXiv 2204.07143), also dilated (DiNAT 2209.15001), strided or causal.

    A window that reaches over the border moves inward, so that each query sees `kernel_size` keys per axis, or the
    whole map if that is smaller. See `Window.neighborhood` and `windowed_attention` for the arguments.
    """
    window = Window.neighborhood(kernel_size, stride, dilation, is_causal)
    return windowed_attention(
        q, k, v, window, rpb=rpb, rel_h=rel_h, rel_w=rel_w, extra_k=extra_k, extra_v=extra_v, scale=scale,
        return_lse=return_lse, backend=backend,
    )  # fmt: skip


@overload
def neighborhood_attention_1d(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int = 1, dilation: int = 1, is_causal: bool = False,
    rpb: Tensor | None = None, scale: Scale = None, return_lse: Literal[False] = False, backend: str | None = None, *,
    rel: Tensor | None = None, extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def neighborhood_attention_1d(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int = 1, dilation: int = 1, is_causal: bool = False,
    rpb: Tensor | None = None, scale: Scale = None, *, return_lse: Literal[True], backend: str | None = None,
    rel: Tensor | None = None, extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def neighborhood_attention_1d(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int = 1, dilation: int = 1, is_causal: bool = False,
    rpb: Tensor | None = None, scale: Scale = None, return_lse: bool = False, backend: str | None = None, *,
    rel: Tensor | None = None, extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Compute neighborhood attention over sequences, as `neighborhood_attention_2d` on maps of one row.

    Args:
        q: Queries `[B, L, heads, head_dim]`.
        k: Keys `[B, L, heads, head_dim]`.
        v: Values `[B, L, heads, v_dim]`.
        kernel_size: Keys per query.
        stride: Queries that share a window.
        dilation: Distance of neighbouring keys of a window.
        is_causal: Whether a query sees no later key.
        rpb: Relative positional bias `[heads, 2 kernel_size - 1]`.
        scale: Factor of `q.k`; `head_dim ** -0.5` by default.
        return_lse: Also return the log-sum-exp, `[B, L, heads]`.
        backend: Name of a backend.
        rel: Logits of each query by offset, `[B, L, heads, 2 kernel_size - 1]`.
        extra_k: Keys that every query also sees, `[B, M, heads, head_dim]`.
        extra_v: Values of `extra_k`.

    Returns:
        `[B, L, heads, v_dim]`, and the log-sum-exp if asked for.
    """
    check_dims_1d(q=(q, 4), k=(k, 4), v=(v, 4), rpb=(rpb, 2), rel=(rel, 4))
    rows = [None if x is None else x[:, None] for x in (rpb, rel)]
    window = Window.sequence(kernel_size, stride, dilation, is_causal)
    result = windowed_attention(
        q[:, None], k[:, None], v[:, None], window, rpb=rows[0], rel_w=rows[1], extra_k=extra_k, extra_v=extra_v,
        scale=scale, return_lse=return_lse, backend=backend,
    )  # fmt: skip
    return result[:, 0] if isinstance(result, Tensor) else (result[0][:, 0], result[1][:, 0])


@overload
def halo_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, block_size: IntOrPair, halo_size: IntOrPair,
    boundary: Literal["mask", "zero"] = "mask", query_stride: IntOrPair = 1, rpb: Tensor | None = None,
    scale: Scale = None, return_lse: Literal[False] = False, backend: str | None = None, *, rel_h: Tensor | None = None,
    rel_w: Tensor | None = None, extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def halo_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, block_size: IntOrPair, halo_size: IntOrPair,
    boundary: Literal["mask", "zero"] = "mask", query_stride: IntOrPair = 1, rpb: Tensor | None = None,
    scale: Scale = None, *, return_lse: Literal[True], backend: str | None = None, rel_h: Tensor | None = None,
    rel_w: Tensor | None = None, extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def halo_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, block_size: IntOrPair, halo_size: IntOrPair,
    boundary: Literal["mask", "zero"] = "mask", query_stride: IntOrPair = 1, rpb: Tensor | None = None,
    scale: Scale = None, return_lse: bool = False, backend: str | None = None, *, rel_h: Tensor | None = None,
    rel_w: Tensor | None = None, extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Compute HaloNet's blocked attention (arXiv 2103.12731): a block of queries sees the block and its halo.

    Relative tables have `2 (block + 2 halo) - 1` entries per axis. See `Window.halo` for block_size, halo_size,
    boundary and query_stride, and `windowed_attention` for the other arguments.
    """
    window = Window.halo(block_size, halo_size, boundary, query_stride)
    return windowed_attention(
        q, k, v, window, rpb=rpb, rel_h=rel_h, rel_w=rel_w, extra_k=extra_k, extra_v=extra_v, scale=scale,
        return_lse=return_lse, backend=backend,
    )  # fmt: skip


@overload
def window_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, window_size: IntOrPair, rpb: Tensor | None = None, scale: Scale = None,
    return_lse: Literal[False] = False, backend: str | None = None, *, rel_h: Tensor | None = None,
    rel_w: Tensor | None = None, extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def window_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, window_size: IntOrPair, rpb: Tensor | None = None, scale: Scale = None, *,
    return_lse: Literal[True], backend: str | None = None, rel_h: Tensor | None = None,
    rel_w: Tensor | None = None, extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def window_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, window_size: IntOrPair, rpb: Tensor | None = None, scale: Scale = None,
    return_lse: bool = False, backend: str | None = None, *, rel_h: Tensor | None = None, rel_w: Tensor | None = None,
    extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Compute attention inside windows that do not overlap (Swin's, arXiv 2103.14030, unshifted).

    Relative tables have `2 window_size - 1` entries per axis. See `windowed_attention` for the other arguments.
    """
    return windowed_attention(
        q, k, v, Window.blocks(window_size), rpb=rpb, rel_h=rel_h, rel_w=rel_w, extra_k=extra_k, extra_v=extra_v,
        scale=scale, return_lse=return_lse, backend=backend,
    )  # fmt: skip


def explain(
    q: Tensor, k: Tensor, v: Tensor, window: Window, rpb: Tensor | None = None, return_lse: bool = False,
    backend: str | None = None, *, rel_h: Tensor | None = None, rel_w: Tensor | None = None,
    extra_k: Tensor | None = None, extra_v: Tensor | None = None,
) -> str:  # fmt: skip
    """Return one line per backend: the one that `windowed_attention` would run, and why the others would not.

    The arguments are those of `windowed_attention`.
    """
    problem = check_problem(q, k, v, window, rpb, None, rel_h, rel_w, extra_k, extra_v, return_lse)
    return dispatch.explain(problem, backend)
