"""`natten.functional`: unfused operators on heads-first maps, fused ones on heads-last maps.

Unfused operators take `[B, heads, H, W, head_dim]`, or `[B, heads, L, head_dim]` in 1-D. Their scores and weights are
`[B, heads, H, W, k_h * k_w]`: the keys of each window in order, row by row. They scale nothing: callers scale queries.
Additional keys, `[B, heads, M, head_dim]`, are seen by every query; their scores follow those of the window.

Fused operators take `[B, H, W, heads, head_dim]`, and additional keys `[B, M, heads, head_dim]`.

All have gradients with regard to every tensor. A window, kernel_size * dilation, must fit the map, as in NATTEN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from visionattn_kernels.attention.api import windowed_attention
from visionattn_kernels.compat.natten.types import (
    CausalArg1DTypeOrDed,
    CausalArg2DTypeOrDed,
    Dimension1DTypeOrDed,
    Dimension2DTypeOrDed,
)
from visionattn_kernels.compat.natten.utils import check_all_args
from visionattn_kernels.unfused.api import windowed_av, windowed_qk
from visionattn_kernels.unfused.slots import finish_scores
from visionattn_kernels.window import Window


def na1d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Dimension1DTypeOrDed,
    dilation: Dimension1DTypeOrDed | None = 1,
    additional_keys: Tensor | None = None,
    is_causal: CausalArg1DTypeOrDed | None = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Compute scores of queries `[B, heads, L, head_dim]` with their neighborhoods, `[B, heads, L, k (+ M)]`."""
    _check_dims(4, "[B, heads, L, head_dim]", query=query, key=key, additional_keys=additional_keys)
    window = _find_window(query.shape[2:3], kernel_size, dilation, is_causal)
    bias = None if rpb is None else rpb[:, None]
    return _score(query[:, :, None], key[:, :, None], window, additional_keys, bias)[:, :, 0]


def na1d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Dimension1DTypeOrDed,
    dilation: Dimension1DTypeOrDed | None = 1,
    additional_values: Tensor | None = None,
    is_causal: CausalArg1DTypeOrDed | None = False,
) -> Tensor:
    """Sum values `[B, heads, L, head_dim]` of each neighborhood, weighted by `[B, heads, L, k (+ M)]`."""
    _check_dims(4, "[B, heads, L, ...]", attn=attn, value=value, additional_values=additional_values)
    window = _find_window(value.shape[2:3], kernel_size, dilation, is_causal)
    return _sum(attn[:, :, None], value[:, :, None], window, additional_values)[:, :, 0]


def na2d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Dimension2DTypeOrDed,
    dilation: Dimension2DTypeOrDed | None = 1,
    additional_keys: Tensor | None = None,
    is_causal: CausalArg2DTypeOrDed | None = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Compute scores of queries `[B, heads, H, W, head_dim]` with their neighborhoods.

    Args:
        query: Queries, scaled by the caller.
        key: Keys, of the same shape.
        kernel_size: Keys of a window, once or per axis.
        dilation: Distance of neighbouring keys.
        additional_keys: Keys that every query sees, `[B, heads, M, head_dim]`.
        is_causal: Whether a query sees no later key; its missing scores are -inf.
        rpb: Relative positional bias, `[heads, 2 k_h - 1, 2 k_w - 1]`, read at `(key - query) / dilation + k - 1`.

    Returns:
        `[B, heads, H, W, k_h * k_w (+ M)]`.

    Raises:
        ValueError: The tensors do not fit each other, or the window does not fit the map.
    """
    _check_dims(5, "[B, heads, H, W, head_dim]", query=query, key=key)
    window = _find_window(query.shape[2:4], kernel_size, dilation, is_causal)
    return _score(query, key, window, additional_keys, rpb)


def na2d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Dimension2DTypeOrDed,
    dilation: Dimension2DTypeOrDed | None = 1,
    additional_values: Tensor | None = None,
    is_causal: CausalArg2DTypeOrDed | None = False,
) -> Tensor:
    """Sum values `[B, heads, H, W, head_dim]` of each neighborhood, weighted by `attn`, laid out as in `na2d_qk`."""
    _check_dims(5, "[B, heads, H, W, ...]", attn=attn, value=value)
    window = _find_window(value.shape[2:4], kernel_size, dilation, is_causal)
    return _sum(attn, value, window, additional_values)


def na1d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Dimension1DTypeOrDed,
    dilation: Dimension1DTypeOrDed | None = 1,
    is_causal: CausalArg1DTypeOrDed | None = False,
    rpb: Tensor | None = None,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    xformers_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """Compute neighborhood attention of sequences `[B, L, heads, head_dim]`; see `na2d`."""
    _check_dims(4, "[B, L, heads, head_dim]", query=query, key=key, value=value)
    window = _find_window(query.shape[1:2], kernel_size, dilation, is_causal)
    bias = None if rpb is None else rpb[:, None]
    extra = additional_keys, additional_values, xformers_kwargs
    return _attend(query[:, None], key[:, None], value[:, None], window, bias, scale, *extra)[:, 0]


def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Dimension2DTypeOrDed,
    dilation: Dimension2DTypeOrDed | None = 1,
    is_causal: CausalArg2DTypeOrDed | None = False,
    rpb: Tensor | None = None,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    xformers_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """Compute neighborhood attention of maps `[B, H, W, heads, head_dim]`.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        kernel_size: Keys of a window, once or per axis.
        dilation: Distance of neighbouring keys.
        is_causal: Whether a query sees no later key.
        rpb: Relative positional bias, as in `na2d_qk`; it has a gradient, which NATTEN's fused kernels lack.
        scale: Factor of the scores; `head_dim ** -0.5` by default.
        additional_keys: Keys that every query sees, `[B, M, heads, head_dim]`.
        additional_values: Their values.
        xformers_kwargs: Must be None or empty; xFormers is not used.

    Returns:
        `[B, H, W, heads, head_dim]`.

    Raises:
        ValueError: The tensors do not fit each other, or the window does not fit the map.
    """
    _check_dims(5, "[B, H, W, heads, head_dim]", query=query, key=key, value=value)
    window = _find_window(query.shape[1:3], kernel_size, dilation, is_causal)
    return _attend(query, key, value, window, rpb, scale, additional_keys, additional_values, xformers_kwargs)


def na1d_qk_with_bias(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    kernel_size: Dimension1DTypeOrDed,
    dilation: Dimension1DTypeOrDed | None,
    additional_keys: Tensor | None = None,
) -> Tensor:
    """Compute `na1d_qk`, which 0.15 calls by this name if there is a bias."""
    return na1d_qk(query, key, kernel_size, dilation, additional_keys, rpb=bias)


def na2d_qk_with_bias(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    kernel_size: Dimension2DTypeOrDed,
    dilation: Dimension2DTypeOrDed | None,
    additional_keys: Tensor | None = None,
) -> Tensor:
    """Compute `na2d_qk`, which 0.15 calls by this name if there is a bias."""
    return na2d_qk(query, key, kernel_size, dilation, additional_keys, rpb=bias)


def natten1dqkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int | None) -> Tensor:
    """Compute `na1d_qk`, which 0.14 calls by this name."""
    return na1d_qk(query, key, kernel_size, dilation, rpb=rpb)


def natten2dqkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int | None) -> Tensor:
    """Compute `na2d_qk`, which 0.14 calls by this name."""
    return na2d_qk(query, key, kernel_size, dilation, rpb=rpb)


def natten1dqk(query: Tensor, key: Tensor, kernel_size: int, dilation: int | None) -> Tensor:
    """Compute `na1d_qk`, which 0.14 calls by this name if there is no bias."""
    return na1d_qk(query, key, kernel_size, dilation)


def natten2dqk(query: Tensor, key: Tensor, kernel_size: int, dilation: int | None) -> Tensor:
    """Compute `na2d_qk`, which 0.14 calls by this name if there is no bias."""
    return na2d_qk(query, key, kernel_size, dilation)


def natten1dav(attn: Tensor, value: Tensor, kernel_size: int, dilation: int | None) -> Tensor:
    """Compute `na1d_av`, which 0.14 calls by this name."""
    return na1d_av(attn, value, kernel_size, dilation)


def natten2dav(attn: Tensor, value: Tensor, kernel_size: int, dilation: int | None) -> Tensor:
    """Compute `na2d_av`, which 0.14 calls by this name."""
    return na2d_av(attn, value, kernel_size, dilation)


def refuse_3d(name: str) -> Callable[..., NoReturn]:
    """Return a function that raises: no operator here has three axes."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{name}: 3-D neighborhood attention is not implemented here, only 1-D and 2-D")

    return refuse


na3d, na3d_qk, na3d_av, na3d_qk_with_bias = map(refuse_3d, ("na3d", "na3d_qk", "na3d_av", "na3d_qk_with_bias"))
natten3dqkrpb, natten3dqk, natten3dav = map(refuse_3d, ("natten3dqkrpb", "natten3dqk", "natten3dav"))


def _check_dims(dims: int, layout: str, **tensors: Tensor | None) -> None:
    for name, x in tensors.items():
        if x is not None and x.is_nested:
            raise ValueError(f"{name} must be a dense tensor; nested ones are not supported: call once per element")
        if x is not None and x.dim() != dims:
            raise ValueError(f"{name} must be {layout}; got shape {list(x.shape)}")


def _check_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    if x.shape != torch.Size(shape):
        raise ValueError(f"{name} must have shape {list(shape)} to fit the other arguments; got {list(x.shape)}")


def _find_window(size: Sequence[int], kernel_size: Any, dilation: Any, is_causal: Any) -> Window:
    """Return the window of a map, or of a sequence, which is a map of one row; it must fit `size`."""
    kernels, dilations, causal = check_all_args(len(size), kernel_size, dilation, is_causal)
    for axis, (kernel, step, length) in enumerate(zip(kernels, dilations, size, strict=True)):
        if kernel * step > length:
            raise ValueError(
                f"kernel_size * dilation must be <= {length} on axis {axis} of a map of {'x'.join(map(str, size))}, as "
                f"in NATTEN; got {kernel} * {step}: pad the map, or call visionattn_kernels.neighborhood_attention_"
                f"{len(size)}d, whose windows shrink to it"
            )
    if len(size) == 1:
        return Window.sequence(kernels[0], 1, dilations[0], causal[0])
    return Window.neighborhood((kernels[0], kernels[1]), 1, (dilations[0], dilations[1]), (causal[0], causal[1]))


def _fold(x: Tensor) -> Tensor:
    """Make heads a part of the batch: scores, the largest tensors, then stay in NATTEN's order of memory."""
    return x.flatten(0, 1).unsqueeze(3)


def _unfold(x: Tensor, heads: int) -> Tensor:
    return x.squeeze(3).unflatten(0, (-1, heads))


def _score(query: Tensor, key: Tensor, window: Window, extra: Tensor | None, rpb: Tensor | None) -> Tensor:
    batch, heads, *size, channels = query.shape
    _check_shape("key", key, query.shape)
    scores = _unfold(windowed_qk(_fold(query), _fold(key), window), heads)
    if rpb is not None:
        _check_shape("rpb", rpb, (heads, *(2 * k - 1 for k in window.kernel_size)))
        biased = finish_scores(scores.movedim(1, 3), window, (size[0], size[1]), rpb)
        scores = biased.movedim(3, 1).to(scores.dtype)
    if extra is not None:
        _check_shape("additional_keys", extra, (batch, heads, extra.shape[2], channels))
        added = query.flatten(2, 3) @ extra.mT
        scores = torch.cat([scores, added.unflatten(2, size).to(scores.dtype)], -1)
    return scores.contiguous()


def _sum(attn: Tensor, value: Tensor, window: Window, extra: Tensor | None) -> Tensor:
    batch, heads, *size, channels = value.shape
    slots, tokens = window.kernel_size[0] * window.kernel_size[1], 0 if extra is None else extra.shape[2]
    _check_shape("attn", attn, (batch, heads, *size, slots + tokens))
    near, far = attn.split([slots, tokens], -1)
    sums = _unfold(windowed_av(_fold(near), _fold(value), window), heads)
    if extra is not None:
        _check_shape("additional_values", extra, (batch, heads, tokens, channels))
        sums = sums + (far.flatten(2, 3) @ extra).unflatten(2, size)
    return sums


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: Window,
    rpb: Tensor | None,
    scale: float | None,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    xformers_kwargs: dict[str, Any] | None,
) -> Tensor:
    if xformers_kwargs:
        raise ValueError(f"xformers_kwargs must be None: xFormers is not used here; got {xformers_kwargs!r}")
    return windowed_attention(
        query, key, value, window, rpb=rpb, scale=scale, extra_k=extra_k, extra_v=extra_v, return_lse=False
    )
