"""The two matrix products of attention, of which the second leaves out what a mask hides.

A weight of zero does not leave a key out, because zero times NaN or infinity is NaN. With `seen [..., m, n]`:

    products(x, y)[m, n] = sum over c of x[m, c] * y[n, c]
    sums(a, y)[m, c]     = sum over the seen n of a[m, n] * y[n, c]

The caller masks the products, and the weights of sums: both are zero, or have a gradient of zero, where not seen. The
gradient of each product is made of sums and products again, so both are differentiable to any order, and leave out in
every gradient what they leave out in the result. A row that meets a vector which is not finite becomes NaN as a whole.
Nothing here depends on data, so both run under `torch.func`, in compiled and exported graphs, and without waiting for
a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

from visionattn_kernels.tracing import is_exporting

Outcome = TypeVar("Outcome", bound=tuple[Any, ...])


def products(x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """Multiply rows `x [..., m, c]` and `y [..., n, c]` to `[..., m, n]`; only those `seen [..., m, n]` are used."""
    return _apply(_Products, x, y, seen)


def sums(a: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """Sum the rows of `y [..., n, c]` with weights `a [..., m, n]` to `[..., m, c]`, over those that are `seen`."""
    return _apply(_Sums, a, y, seen)


def sum_seen(a: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """Compute `sums` without a gradient."""
    spoilt = find_spoilt(y)
    total = a @ y.masked_fill(spoilt[..., None], 0)
    # An einsum, unlike a product of matrices, makes no copy of the mask for each head. ONNX wants as many dimensions.
    mask = seen[(None,) * (y.dim() - seen.dim())].to(y.dtype)
    reached = torch.einsum("...mn,...n->...m", mask, spoilt.to(y.dtype)) > 0
    return total.masked_fill(reached[..., None], torch.nan)


def find_spoilt(x: Tensor) -> Tensor:
    """Return which vectors `[..., c]` hold NaN or infinity: `[...]`."""
    return (x * 0).sum(-1) != 0  # zero or NaN, and far cheaper than `isfinite`


def until_clean(compute: Callable[[bool], Outcome], device: torch.device) -> Outcome:
    """Return `compute(False)`, which multiplies by zeros, or `compute(True)`, which leaves out, if that is needed.

    Whatever gets through a weight of zero is NaN. On a CPU the faster way is tried first and its result looked at; a
    GPU would have to be waited for, so there the other way is taken at once.

    Args:
        compute: Gives a tuple, whose first tensor is NaN somewhere if anything got through.
        device: Of the tensors.
    """
    if device.type == "cpu":
        outcome = compute(False)
        if not outcome[0].sum().isnan():
            return outcome
    return compute(True)


class _Products(Function):
    """`products`, and its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
        return x @ y.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y, seen = ctx.saved_tensors
        return sums(grad, y, seen), sums(grad.mT, x, seen.mT), None


class _Sums(_Products):
    """`sums`, and its gradient."""

    @staticmethod
    def forward(a: Tensor, y: Tensor, seen: Tensor) -> Tensor:
        return sum_seen(a, y, seen)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        a, y, seen = ctx.saved_tensors
        return products(grad, y, seen), sums(a.mT, grad, seen.mT), None


def _apply(function: type[_Products], x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    if is_exporting() or torch.jit.is_tracing():  # such a graph holds plain operators alone
        return function.forward(x, y, seen)
    if not torch.compiler.is_compiling():  # the compiler takes no function with a forward mode
        function = _FORWARD_MODE[function]
    return function.apply(x, y, seen)


def _add_forward_mode(function: type[_Products]) -> type[_Products]:
    class WithForwardMode(function):  # type: ignore[valid-type, misc]
        @staticmethod
        def jvp(ctx: Any, dx: Tensor, dy: Tensor, _: None) -> Tensor:
            x, y, seen = ctx.saved_tensors
            return _apply(function, dx, y, seen) + _apply(function, x, dy, seen)

    return WithForwardMode


_FORWARD_MODE = {function: _add_forward_mode(function) for function in (_Products, _Sums)}
