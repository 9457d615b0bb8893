"""The public operators: argument checks, then dispatch.

All of them are `windowed_attention` with another `Window`. Maps are heads-last, `[B, H, W, heads, head_dim]`; a window
argument is an int, or one value per axis. Every argument error is a ValueError that names the argument.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor

from visionattn_kernels import dispatch
from visionattn_kernels.problem import Problem
from visionattn_kernels.window import Window

IntOrPair = int | tuple[int, int]
BoolOrPair = bool | tuple[bool, bool]
Result = Tensor | tuple[Tensor, Tensor]
Scale = float | Tensor | None

# Asked here, for torch 2.11 does not trace the question.
AUTOCAST_DEVICES = tuple(name for name in ("cpu", "cuda", "xpu", "mps", "hpu") if torch.amp.is_autocast_available(name))


class MoreTensors(TypedDict, total=False):
    """Optional tensors that every 2-D operator takes by name, as `windowed_attention` describes them."""

    rel_h: Tensor | None
    rel_w: Tensor | None
    extra_k: Tensor | None
    extra_v: Tensor | None


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
) -> Result:
    """Attention of each query over the keys of its window: `softmax(scale q.k + bias) v`.

    Args:
        q: Queries `[B, Q_h, Q_w, heads, head_dim]`, with `Q = ceil(H / query_stride)` (H itself by default).
        k: Keys `[B, H, W, heads, head_dim]`.
        v: Values `[B, H, W, heads, v_dim]`.
        window: Which keys a query sees.
        rpb: Relative positional bias `[heads, 2 k_h - 1, 2 k_w - 1]`, read at `(key - query) / dilation + k - 1`.
        rel_h: Logits of each query by row offset, `[B, Q_h, Q_w, heads, 2 k_h - 1]`, read likewise and added (the
            decomposed relative position of HaloNet, BoTNet and MViT).
        rel_w: Logits of each query by column offset, `[B, Q_h, Q_w, heads, 2 k_w - 1]`.
        extra_k: Keys `[B, M, heads, head_dim]` that every query sees too, in the same softmax (class tokens).
        extra_v: Values `[B, M, heads, v_dim]` of `extra_k`.
        scale: Factor of `q.k`, a finite number; `head_dim ** -0.5` by default. A tensor of one element has a gradient.
        return_lse: Also returns the log-sum-exp of each query's scores, `[B, Q_h, Q_w, heads]`, in float32 or wider.
        backend: Name of the backend; by default the first that can run. A named one is never replaced by another.

    Returns:
        `[B, Q_h, Q_w, heads, v_dim]` in q's dtype, and the log-sum-exp if asked for. Under autocast, float32 maps are
        cast as those of a matrix product are.

    Raises:
        ValueError: A tensor does not fit the others or the window, or the backend cannot run the problem.
    """
    q, k, v = autocast_inputs(q, k, v)
    if extra_k is not None and extra_v is not None:
        extra_k, extra_v = autocast_inputs(extra_k, extra_v)
    q, factor = scale_queries(q, scale)
    problem = check_problem(q, k, v, window, rpb, factor, rel_h, rel_w, extra_k, extra_v, return_lse)
    out, lse = dispatch.choose(problem, backend).attention(problem, return_lse)
    if not return_lse:
        return out
    assert lse is not None
    return out, lse


def neighborhood_attention_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    dilation: IntOrPair = 1,
    is_causal: BoolOrPair = False,
    rpb: Tensor | None = None,
    scale: Scale = None,
    return_lse: bool = False,
    backend: str | None = None,
    **tensors: Unpack[MoreTensors],
) -> Result:
    """(Dilated, strided, causal) neighborhood attention (NAT arXiv 2204.07143, DiNAT 2209.15001, GNA 2504.16922).

    A window that reaches over the border moves inward, so that each query sees `kernel_size` keys per axis; where the
    window is larger than the map, each sees all of it. Arguments are those of `windowed_attention`.
    """
    return windowed_attention(
        q,
        k,
        v,
        Window.create(kernel_size, stride, dilation, is_causal),
        rpb=rpb,
        scale=scale,
        return_lse=return_lse,
        backend=backend,
        **tensors,
    )


def neighborhood_attention_1d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    is_causal: bool = False,
    rpb: Tensor | None = None,
    scale: Scale = None,
    return_lse: bool = False,
    backend: str | None = None,
    *,
    rel: Tensor | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
) -> Result:
    """Neighborhood attention over sequences `[B, L, heads, head_dim]`: a map of one row.

    Args:
        q: Queries `[B, L, heads, head_dim]`; k and v alike.
        k: Keys.
        v: Values.
        kernel_size: Keys per query.
        stride: Queries that share a window.
        dilation: Distance of neighbouring keys of a window.
        is_causal: Whether a query sees no key behind itself.
        rpb: Relative positional bias `[heads, 2 kernel_size - 1]`.
        scale: Factor of `q.k`; `head_dim ** -0.5` by default.
        return_lse: Also returns the log-sum-exp, `[B, L, heads]`.
        backend: Name of the backend.
        rel: Logits of each query by offset, `[B, L, heads, 2 kernel_size - 1]`.
        extra_k: Keys that every query sees too, `[B, M, heads, head_dim]`.
        extra_v: Their values.

    Returns:
        `[B, L, heads, v_dim]`, and the log-sum-exp if asked for.
    """
    check_dims_1d(q=(q, 4), k=(k, 4), v=(v, 4), rpb=(rpb, 2), rel=(rel, 4))
    result = windowed_attention(
        q[:, None],
        k[:, None],
        v[:, None],
        Window.create((1, kernel_size), (1, stride), (1, dilation), (False, is_causal)),
        rpb=None if rpb is None else rpb[:, None],
        rel_w=None if rel is None else rel[:, None],
        extra_k=extra_k,
        extra_v=extra_v,
        scale=scale,
        return_lse=return_lse,
        backend=backend,
    )
    return result[:, 0] if isinstance(result, Tensor) else (result[0][:, 0], result[1][:, 0])


def halo_attention_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_size: IntOrPair,
    halo_size: IntOrPair,
    boundary: Literal["mask", "zero"] = "mask",
    query_stride: IntOrPair = 1,
    rpb: Tensor | None = None,
    scale: Scale = None,
    return_lse: bool = False,
    backend: str | None = None,
    **tensors: Unpack[MoreTensors],
) -> Result:
    """Blocked local attention with a halo (HaloNet, arXiv 2103.12731): a block of queries sees the block and its halo.

    Any map size works: the last block of an axis may be ragged. Relative tables have `2 (block + 2 halo) - 1` entries.

    Args:
        q: Queries `[B, Q_h, Q_w, heads, head_dim]`.
        k: Keys `[B, H, W, heads, head_dim]`.
        v: Values `[B, H, W, heads, v_dim]`.
        block_size: Edge of a block, in key positions.
        halo_size: Keys seen on each side of the block.
        boundary: What lies beyond the map: nothing ("mask"), or zero vectors that take part in the softmax ("zero",
            as in networks trained with unmasked zero padding).
        query_stride: Distance of neighbouring queries, in key positions: 2 for HaloNet's downsampling attention.
        rpb: As the other arguments, see `windowed_attention`.
        scale: Factor of `q.k`.
        return_lse: Also returns the log-sum-exp.
        backend: Name of the backend.
        **tensors: Those of `MoreTensors`.
    """
    block, halo = _pair("block_size", block_size, 1), _pair("halo_size", halo_size, 0)
    if boundary not in ("mask", "zero"):
        raise ValueError(f"boundary must be 'mask' or 'zero' in halo attention; got {boundary!r}")
    kernel = (block[0] + 2 * halo[0], block[1] + 2 * halo[1])
    return windowed_attention(
        q,
        k,
        v,
        Window.create(kernel, block, boundary=boundary, query_stride=query_stride),
        rpb=rpb,
        scale=scale,
        return_lse=return_lse,
        backend=backend,
        **tensors,
    )


def window_attention_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window_size: IntOrPair,
    rpb: Tensor | None = None,
    scale: Scale = None,
    return_lse: bool = False,
    backend: str | None = None,
    **tensors: Unpack[MoreTensors],
) -> Result:
    """Attention inside windows that do not overlap (Swin's, arXiv 2103.14030, unshifted); the last may be ragged.

    Arguments are those of `windowed_attention`; relative tables have `2 window_size - 1` entries per axis.
    """
    return halo_attention_2d(
        q,
        k,
        v,
        _pair("window_size", window_size, 1),
        0,
        rpb=rpb,
        scale=scale,
        return_lse=return_lse,
        backend=backend,
        **tensors,
    )


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Window,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
    **tensors: Unpack[MoreTensors],
) -> str:
    """One line per backend: which one `windowed_attention` would run with these arguments, and why not the others.

    Args:
        q: Queries, as in `windowed_attention`; k, v and window alike.
        k: Keys.
        v: Values.
        window: Which keys a query sees.
        rpb: Relative positional bias.
        return_lse: Whether the log-sum-exp is asked for.
        backend: Name of the backend, if one is asked for.
        **tensors: Those of `MoreTensors`.
    """
    return dispatch.explain(check_problem(q, k, v, window, rpb, None, need_lse=return_lse, **tensors), backend)


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(type(x) is int and x >= least for x in pair):
        raise ValueError(f"{name} must be an int >= {least}, or one per axis; got {value!r}")
    return pair


def autocast_inputs(*maps: Tensor) -> tuple[Tensor, ...]:
    """What autocast does to the arguments of a matrix product; biases keep their precision."""
    device = maps[0].device.type
    if device not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return maps
    return tuple(x.to(torch.get_autocast_dtype(device)) if x.dtype == torch.float32 else x for x in maps)


def scale_queries(q: Tensor, scale: Scale) -> tuple[Tensor, float | None]:
    """Queries and the factor that remains: a tensor goes into the queries, where autograd sees it."""
    if not isinstance(scale, Tensor):
        return q, scale
    if scale.numel() != 1:
        raise ValueError(f"scale must be a number or a tensor of one element; got shape {tuple(scale.shape)}")
    return q * scale.reshape(()).to(q.dtype), 1.0


def check_dims_1d(**tensors: tuple[Tensor | None, int]) -> None:
    """Holds tensors of a 1-D operator to their numbers of dimensions. Raises ValueError with the name of one."""
    for name, (x, dims) in tensors.items():
        if x is not None and x.dim() != dims:
            raise ValueError(f"{name} must have {dims} dimensions in 1-D attention; got shape {tuple(x.shape)}")


def check_problem(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Window,
    rpb: Tensor | None,
    scale: float | None,
    rel_h: Tensor | None = None,
    rel_w: Tensor | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    need_lse: bool = False,
) -> Problem:
    """Arguments of `windowed_attention` as a `Problem`. Raises ValueError where they do not fit each other."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 5:
            raise ValueError(f"{name} must be [B, H, W, heads, head_dim]; got shape {tuple(x.shape)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"{name} must have q's dtype and device, {q.dtype} on {q.device}; got {x.dtype} on {x.device}"
            )
    if not q.is_floating_point():
        raise ValueError(f"q must be of a floating dtype; got {q.dtype}")
    batch, height, width, heads, head_dim = k.shape
    if 0 in k.shape[1:]:
        raise ValueError(f"k must have at least one row, column, head and channel; got shape {tuple(k.shape)}")
    queries = (batch, *window.num_queries((height, width)), heads)
    tables = tuple(2 * x - 1 for x in window.kernel_size)
    _check_shape("q", q, (*queries, head_dim), "k and the window's query_stride")
    _check_shape("v", v, (batch, height, width, heads, v.shape[-1]), "k")
    _check_shape("rpb", rpb, (heads, *tables), "heads and 2 * kernel_size - 1")
    _check_shape("rel_h", rel_h, (*queries, tables[0]), "q and 2 * kernel_size - 1")
    _check_shape("rel_w", rel_w, (*queries, tables[1]), "q and 2 * kernel_size - 1")
    if (extra_k is None) != (extra_v is None):
        raise ValueError("extra_k and extra_v must be given together; one of them is None")
    if extra_k is not None and extra_v is not None:
        tokens = extra_k.shape[1] if extra_k.dim() > 1 else 0
        _check_shape("extra_k", extra_k, (batch, tokens, heads, head_dim), "k")
        _check_shape("extra_v", extra_v, (batch, tokens, heads, v.shape[-1]), "v and extra_k")
    optional = {"rpb": rpb, "rel_h": rel_h, "rel_w": rel_w, "extra_k": extra_k, "extra_v": extra_v}
    for name, tensor in optional.items():
        if tensor is not None and tensor.device != q.device:
            raise ValueError(f"{name} must be on q's device, {q.device}; got {tensor.device}")
    return Problem(
        q,
        k,
        v,
        window.fit((height, width)),
        head_dim**-0.5 if scale is None else _check_scale(scale),
        rpb,
        rel_h,
        rel_w,
        extra_k,
        extra_v,
        need_lse,
    )


def _check_scale(scale: Any) -> float:
    try:
        number = float(scale)
    except (TypeError, ValueError):
        number = math.nan
    if not -math.inf < number < math.inf:  # which the compiler traces, unlike math.isfinite
        raise ValueError(f"scale must be a finite number; got {scale!r}")
    return number


def _check_shape(name: str, x: Tensor | None, shape: tuple[int, ...], fitting: str) -> None:
    if x is not None and tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)} to fit {fitting}; got {list(x.shape)}")
