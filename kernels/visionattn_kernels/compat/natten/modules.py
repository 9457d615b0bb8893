"""NATTEN's modules, with the names and shapes of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn_kernels.compat.natten import functional
from visionattn_kernels.compat.natten.utils import check_all_args

RELEASES = ("0.14", "0.15", "0.17")

_release = RELEASES[0]

OPERATORS: dict[int, tuple[Callable[..., Tensor], ...]] = {
    1: (functional.na1d_qk, functional.na1d_av, functional.na1d),
    2: (functional.na2d_qk, functional.na2d_av, functional.na2d),
}
"""Scores, sums and fused attention by number of axes."""


def use_defaults_of(release: str) -> None:
    """Choose whose defaults modules take: without `bias` or `rel_pos_bias`, they have a bias up to 0.15, none in 0.17.

    Raises:
        ValueError: `release` is not one of `RELEASES`.
    """
    global _release
    if release not in RELEASES:
        raise ValueError(f"release must be one of {', '.join(RELEASES)}; got {release!r}")
    _release = release


@torch.fx.wrap
def pad_to_window(x: Tensor, kernel_size: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Append zeros to a map `[B, ..., dim]` until a window, kernel_size * dilation, fits; opaque to FX."""
    if x.dim() != len(kernel_size) + 2:
        axes = ("L",) if len(kernel_size) == 1 else ("H", "W")
        raise ValueError(f"x must be [B, {', '.join(axes)}, dim]; got shape {list(x.shape)}")
    missing = [max(0, k * d - n) for k, d, n in zip(kernel_size, dilation, x.shape[1:-1], strict=True)]
    if not any(missing):
        return x
    return F.pad(x, (0, 0, *(side for count in reversed(missing) for side in (0, count))))


@torch.fx.wrap
def attend(
    qkv: Tensor,
    size: Sequence[int],
    rpb: Tensor | None,
    num_heads: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
    attn_drop: float,
) -> Tensor:
    """Compute attention of packed `[B, ..., 3 * dim]`, and crop the result to `size`; opaque to FX.

    With dropout of weights it takes the unfused operators.
    """
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(-3)  # [B, ..., heads, head_dim]
    qk, av, fused = OPERATORS[len(kernel_size)]
    rule = {"kernel_size": kernel_size, "dilation": dilation, "is_causal": is_causal}
    if attn_drop:
        q, k, v = (x.movedim(-2, 1) for x in (q * scale, k, v))
        attn = F.dropout(qk(q, k, rpb=rpb, **rule).softmax(-1), attn_drop)
        out = av(attn, v, **rule).movedim(1, -2)
    else:
        out = fused(q, k, v, rpb=rpb, scale=scale, **rule)
    out = out.flatten(-2)
    for axis, length in enumerate(size, start=1):
        out = out.narrow(axis, 0, length)
    return out


class NeighborhoodAttentionNd(nn.Module):
    """Multi-head neighborhood attention of `[B, ..., dim]`, the base of both modules.

    A map that is smaller than a window, kernel_size * dilation, is padded with zeros at its end, which are attended, as
    in NATTEN up to 0.15; 0.17 raises an error there.
    """

    axes: int

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: Any,
        dilation: Any = 1,
        *,
        bias: bool | None = None,
        is_causal: Any = False,
        rel_pos_bias: bool | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_experimental_ops: bool = False,
    ) -> None:
        """Build the module. NATTEN's releases order what follows `dilation` differently: pass it by name.

        Args:
            dim: Channels.
            num_heads: Attention heads; must divide `dim`.
            kernel_size: Keys of a window, once or per axis.
            dilation: Distance of neighbouring keys; None for 1.
            bias: Whether there is a relative positional bias, by its name up to 0.15.
            is_causal: Whether a query sees no later key.
            rel_pos_bias: `bias`, by its name in 0.17. If neither is given, see `use_defaults_of`; causal modules have
                none.
            qkv_bias: Whether the projection to queries, keys and values has a bias.
            qk_scale: Factor of the scores; `head_dim ** -0.5` by default.
            attn_drop: Dropout of the weights. It is applied in training, by the unfused operators.
            proj_drop: Dropout after the output projection.
            use_experimental_ops: Ignored.

        Raises:
            ValueError: An argument is out of bounds, or both names of the bias are given.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got dim {dim} and num_heads {num_heads}")
        if bias is not None and rel_pos_bias is not None:
            raise ValueError("bias and rel_pos_bias are two names of one argument; give one of them")
        self.kernel_size, self.dilation, self.is_causal = check_all_args(self.axes, kernel_size, dilation, is_causal)
        named = bias if rel_pos_bias is None else rel_pos_bias
        has_rpb = (_release != "0.17" and not any(self.is_causal)) if named is None else named
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5 if qk_scale is None else qk_scale
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.rpb = nn.Parameter(torch.zeros(num_heads, *(2 * k - 1 for k in self.kernel_size))) if has_rpb else None
        if self.rpb is not None:
            nn.init.trunc_normal_(self.rpb, std=0.02)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, ..., dim]` to the same."""
        qkv = self.qkv(pad_to_window(x, self.kernel_size, self.dilation))
        attn_drop = self.attn_drop.p if self.training else 0.0
        rule = self.num_heads, self.kernel_size, self.dilation, self.is_causal
        return self.proj_drop(self.proj(attend(qkv, x.shape[1:-1], self.rpb, *rule, self.scale, attn_drop)))

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, "
            f"dilation={self.dilation}, is_causal={self.is_causal}, has_bias={self.rpb is not None}"
        )


class NeighborhoodAttention1D(NeighborhoodAttentionNd):
    """Neighborhood attention of sequences `[B, L, dim]`; parameters `qkv`, `rpb [heads, 2 k - 1]` and `proj`."""

    axes = 1


class NeighborhoodAttention2D(NeighborhoodAttentionNd):
    """Neighborhood attention of maps `[B, H, W, dim]`; parameters `qkv`, `rpb [heads, 2 k - 1, 2 k - 1]` and `proj`."""

    axes = 2


class NeighborhoodAttention3D:
    """Stands for NATTEN's module of volumes, so that imports work; building one raises NotImplementedError."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        functional.refuse_3d("NeighborhoodAttention3D")()
