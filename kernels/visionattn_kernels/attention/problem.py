"""One attention problem, as every backend receives it, and the checks of its arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from visionattn_kernels.window import Window

Scale = float | Tensor | None

# Asked here, because torch 2.11 does not trace the question.
AUTOCAST_DEVICES = tuple(name for name in ("cpu", "cuda", "xpu", "mps", "hpu") if torch.amp.is_autocast_available(name))


@dataclass(frozen=True)
class Problem:
    """Checked arguments of one windowed attention.

    Attributes:
        q: `[B, Q_h, Q_w, heads, head_dim]` queries; `Q` is `ceil(H / query_stride)`.
        k: `[B, H, W, heads, head_dim]` keys.
        v: `[B, H, W, heads, v_dim]` values.
        window: Which keys a query sees.
        scale: Factor of the products `q.k`; no bias is scaled.
        rpb: `[heads, 2 k_h - 1, 2 k_w - 1]` relative positional bias at `(key - query) / dilation + kernel_size - 1`.
        rel_h: `[B, Q_h, Q_w, heads, 2 k_h - 1]` logits of each query by row offset, likewise indexed.
        rel_w: `[B, Q_h, Q_w, heads, 2 k_w - 1]` logits of each query by column offset.
        extra_k: `[B, M, heads, head_dim]` keys that every query sees as well, in the same softmax, without bias.
        extra_v: `[B, M, heads, v_dim]` their values.
        need_lse: Whether the log-sum-exp of each query's scores is asked for.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    window: Window
    scale: float
    rpb: Tensor | None = None
    rel_h: Tensor | None = None
    rel_w: Tensor | None = None
    extra_k: Tensor | None = None
    extra_v: Tensor | None = None
    need_lse: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the key map."""
        return self.k.shape[1], self.k.shape[2]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are given, by name."""
        return {name: x for name in TENSORS if (x := getattr(self, name)) is not None}

    def refuse_dtype(self, *dtypes: torch.dtype) -> str | None:
        """Return why a backend of these dtypes cannot run the problem, or None."""
        return None if self.q.dtype in dtypes else f"dtype {self.q.dtype} is not one of {', '.join(map(str, dtypes))}"

    @property
    def needs_grad(self) -> bool:
        """True if autograd records the result."""
        return torch.is_grad_enabled() and any(x.requires_grad for x in self.tensors.values())


TENSORS = tuple(f.name for f in fields(Problem) if f.name not in ("window", "scale", "need_lse"))
"""The names of a problem's tensors, which are also the first arguments of every fused operator."""


def autocast_inputs(*maps: Tensor) -> tuple[Tensor, ...]:
    """Cast maps as autocast casts the arguments of a matrix product; biases keep their precision."""
    device = maps[0].device.type
    if device not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return maps
    return tuple(x.to(torch.get_autocast_dtype(device)) if x.dtype == torch.float32 else x for x in maps)


def scale_queries(q: Tensor, scale: Scale) -> tuple[Tensor, float | None]:
    """Return queries and the remaining factor: a tensor is multiplied into the queries, where autograd sees it."""
    if not isinstance(scale, Tensor):
        return q, scale
    if scale.numel() != 1:
        raise ValueError(f"scale must be a number or a tensor of one element; got shape {tuple(scale.shape)}")
    return q * scale.reshape(()).to(q.dtype), 1.0


def check_dims_1d(**tensors: tuple[Tensor | None, int]) -> None:
    """Check the number of dimensions of each tensor of a 1-D operator. Raises ValueError with its name."""
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
    """Return checked arguments of `windowed_attention`. Raises ValueError if they do not fit each other."""
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
    if not v.shape[-1]:
        raise ValueError(f"v must have at least one channel; got shape {tuple(v.shape)}")
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
    factor = head_dim**-0.5 if scale is None else _check_scale(scale)
    return Problem(q, k, v, window.fit((height, width)), factor, rpb, rel_h, rel_w, extra_k, extra_v, need_lse)


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
