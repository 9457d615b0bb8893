"""The two halves of windowed attention as operators: scores of queries and keys, and sums of values by weights.

Windows are laid out by slot, `[B, Q_h, Q_w, heads, k_h * k_w]`: the keys of each query in order, row by row; slot e of
an axis is key `start + e` of the query's interval. A slot does not exist where a window is cut by the border
("mask"), by the query itself (causal), or by a map smaller than it; slots beyond the border of a "zero" map hold zero
vectors. Both operators are differentiable to any order, and every ValueError names its argument.
"""

from __future__ import annotations

from torch import Tensor

from visionattn_kernels.attention.problem import autocast_inputs, check_dims_1d, check_problem, scale_queries
from visionattn_kernels.unfused import products
from visionattn_kernels.unfused.slots import finish_scores
from visionattn_kernels.window import BoolOrPair, Boundary, IntOrPair, Window


def windowed_qk(q: Tensor, k: Tensor, window: Window, rpb: Tensor | None = None, scale: float | Tensor = 1.0) -> Tensor:
    """Compute scores of each query with the keys of its window: `scale q.k + rpb`.

    Args:
        q: Queries `[B, Q_h, Q_w, heads, head_dim]`, with `Q = ceil(H / query_stride)` (H itself by default).
        k: Keys `[B, H, W, heads, head_dim]`.
        window: Which keys a query sees.
        rpb: Relative positional bias `[heads, 2 k_h - 1, 2 k_w - 1]`, read at `(key - query) / dilation + k - 1`.
        scale: Factor of `q.k`. It is 1 by default, as in NATTEN's unfused operators: callers scale their queries.

    Returns:
        `[B, Q_h, Q_w, heads, k_h * k_w]` in q's dtype, -inf at slots that do not exist.

    Raises:
        ValueError: A tensor does not fit the others or the window.
    """
    q, k = autocast_inputs(q, k)
    q, factor = scale_queries(q, scale)
    problem = check_problem(q, k, k, window, rpb, factor)
    window, size = problem.window, problem.size
    scores = products.qk(q if problem.scale == 1 else q * problem.scale, k, window, size)
    return finish_scores(scores, window, size, rpb).to(q.dtype)


def windowed_av(attn: Tensor, v: Tensor, window: Window) -> Tensor:
    """Sum the values of each query's window, weighted by `attn`.

    Args:
        attn: Weights `[B, Q_h, Q_w, heads, k_h * k_w]`, any numbers; ignored at slots that do not exist, where their
            gradient is zero.
        v: Values `[B, H, W, heads, v_dim]`.
        window: Which keys a query sees.

    Returns:
        `[B, Q_h, Q_w, heads, v_dim]` in v's dtype.

    Raises:
        ValueError: The tensors do not fit each other or the window.
    """
    attn, v = autocast_inputs(attn, v)
    if v.dim() != 5 or 0 in v.shape[1:]:
        raise ValueError(f"v must be [B, H, W, heads, v_dim], none of them 0 but B; got shape {tuple(v.shape)}")
    if attn.dtype != v.dtype or attn.device != v.device or not v.is_floating_point():
        raise ValueError(
            f"attn and v must have one floating dtype and one device; got {attn.dtype} on {attn.device} "
            f"and {v.dtype} on {v.device}"
        )
    batch, height, width, heads, _ = v.shape
    slots = window.kernel_size[0] * window.kernel_size[1]
    shape = (batch, *window.num_queries((height, width)), heads, slots)
    if attn.shape != shape:
        raise ValueError(f"attn must have shape {list(shape)} to fit v and the window; got {list(attn.shape)}")
    size = (height, width)
    return products.av(attn, v, window.fit(size), size)


def neighborhood_qk_2d(
    q: Tensor,
    k: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    dilation: IntOrPair = 1,
    is_causal: BoolOrPair = False,
    rpb: Tensor | None = None,
    scale: float | Tensor = 1.0,
    boundary: Boundary = "shift",
) -> Tensor:
    """Compute scores of each query with its neighborhood; see `windowed_qk` and `Window.neighborhood`."""
    return windowed_qk(q, k, Window.neighborhood(kernel_size, stride, dilation, is_causal, boundary), rpb, scale)


def neighborhood_av_2d(
    attn: Tensor,
    v: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    dilation: IntOrPair = 1,
    is_causal: BoolOrPair = False,
    boundary: Boundary = "shift",
) -> Tensor:
    """Sum values over each query's neighborhood; see `windowed_av` and `Window.neighborhood`."""
    return windowed_av(attn, v, Window.neighborhood(kernel_size, stride, dilation, is_causal, boundary))


def neighborhood_qk_1d(
    q: Tensor,
    k: Tensor,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    is_causal: bool = False,
    rpb: Tensor | None = None,
    scale: float | Tensor = 1.0,
    boundary: Boundary = "shift",
) -> Tensor:
    """Run `neighborhood_qk_2d` on sequences: `[B, L, heads, head_dim]` and `[heads, 2 k - 1]` to `[B, L, heads, k]`."""
    check_dims_1d(q=(q, 4), k=(k, 4), rpb=(rpb, 2))
    window = Window.sequence(kernel_size, stride, dilation, is_causal, boundary)
    return windowed_qk(q[:, None], k[:, None], window, None if rpb is None else rpb[:, None], scale)[:, 0]


def neighborhood_av_1d(
    attn: Tensor,
    v: Tensor,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    is_causal: bool = False,
    boundary: Boundary = "shift",
) -> Tensor:
    """Run `neighborhood_av_2d` on sequences: `[B, L, heads, k]`, `[B, L, heads, v_dim]` to `[B, L, heads, v_dim]`."""
    check_dims_1d(attn=(attn, 4), v=(v, 4))
    window = Window.sequence(kernel_size, stride, dilation, is_causal, boundary)
    return windowed_av(attn[:, None], v[:, None], window)[:, 0]
