"""One attention problem, as every backend receives it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from visionattn_kernels.window import Window


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

    @property
    def needs_grad(self) -> bool:
        """Whether autograd records what is computed."""
        return torch.is_grad_enabled() and any(x.requires_grad for x in self.tensors.values())


TENSORS = tuple(f.name for f in fields(Problem) if f.name not in ("window", "scale", "need_lse"))
"""The names of a problem's tensors, which are also the first arguments of every fused operator."""
