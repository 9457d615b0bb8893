"""Argument checks of attention over several dilated windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from visionattn_kernels.attention.problem import check_problem
from visionattn_kernels.window import Window


@dataclass(frozen=True)
class MultiscaleProblem:
    """Checked arguments of `multiscale_attention_2d`.

    Attributes:
        q: `[B, H, W, heads, head_dim]` queries.
        k: `[B, H, W, heads, head_dim]` keys.
        v: `[B, H, W, heads, v_dim]` values.
        rpb: `[heads, scales, kernel_size, kernel_size]` relative positional bias, read at
            `(key - query) / dilation + kernel_size // 2`; the centre of the first scale alone.
        dilations: One per scale.
        kernel_size: Keys per axis and scale, an odd number.
        scale: Factor of the products `q.k`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rpb: Tensor | None
    dilations: tuple[int, ...]
    kernel_size: int
    scale: float

    def window(self, scale: int) -> Window:
        """Return the window of one scale, with its centre."""
        return Window.neighborhood(self.kernel_size, dilation=self.dilations[scale], boundary="mask")


def check_multiscale(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dilations: Sequence[int],
    kernel_size: int,
    rpb: Tensor | None,
    scale: float | None,
) -> MultiscaleProblem:
    """Return checked arguments. Raises ValueError if they do not fit each other."""
    if type(kernel_size) is not int or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be an odd int >= 1, so that windows have a centre; got {kernel_size!r}")
    given = tuple(dilations) if isinstance(dilations, Sequence) else ()
    if not given or not all(type(x) is int and x >= 1 for x in given):
        raise ValueError(f"dilations must hold at least one int >= 1, one per scale; got {dilations!r}")
    _check_disjoint(given, kernel_size)
    first = Window.neighborhood(kernel_size, dilation=given[0], boundary="mask")
    problem = check_problem(q, k, v, first, None, scale)
    shape = (k.shape[3], len(given), kernel_size, kernel_size)
    if rpb is not None and tuple(rpb.shape) != shape:
        raise ValueError(
            f"rpb must have shape {list(shape)} to fit heads, dilations and kernel_size; got {list(rpb.shape)}"
        )
    if rpb is not None and rpb.device != q.device:
        raise ValueError(f"rpb must be on q's device, {q.device}; got {rpb.device}")
    return MultiscaleProblem(q, k, v, rpb, given, kernel_size, problem.scale)


def _check_disjoint(dilations: tuple[int, ...], kernel_size: int) -> None:
    """Raise ValueError if a key that is not the centre would count in two scales."""
    owner: dict[int, int] = {}
    for dilation in dilations:
        # Two windows share a key exactly if they share one on the axis of rows.
        for offset in range(dilation, dilation * (kernel_size // 2) + 1, dilation):
            if offset in owner:
                raise ValueError(
                    f"dilations must give every key to one scale; with kernel_size {kernel_size}, dilations "
                    f"{owner[offset]} and {dilation} share the offset {offset}: leave one of them out"
                )
            owner[offset] = dilation
