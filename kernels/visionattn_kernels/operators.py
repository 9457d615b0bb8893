"""One way to define an operator of torch: schema, shapes, gradient, vmap and FLOP counts.

Operators are opaque to `torch.compile`, `torch.export` and FX. They have no forward-mode derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from visionattn_kernels.tracing import is_forward_mode, is_transformed, without_autocast

OPERATORS: dict[str, Any] = {}
"""Every operator that was defined, by name."""

NO_FORWARD_MODE = "it has no forward-mode derivative"


@dataclass(frozen=True)
class Call:
    """One call of an operator, as its gradient needs it.

    Attributes:
        tensors: The tensors that lead the arguments; None for an absent one.
        settings: The other arguments.
        outputs: The results, if the operator saves them.
        needed: Whether the gradient of each tensor is needed.
    """

    tensors: tuple[Tensor | None, ...]
    settings: tuple[Any, ...]
    outputs: tuple[Tensor, ...]
    needed: tuple[bool, ...]


Backward = Callable[..., Sequence[Tensor | None]]
"""From a `Call` and the gradient of each result (None for an absent one) to the gradient of each of its tensors."""


def define_operator(
    name: str,
    schema: str,
    run: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    backward: Backward | None = None,
    saves_outputs: bool = False,
    flops: Callable[..., int] | None = None,
    vmap: Callable[..., Any] | None = None,
    mutates: Sequence[str] = (),
    device: str | None = None,
) -> Callable[..., Any]:
    """Define `visionattn::NAME`.

    Args:
        name: Of the operator.
        schema: Its arguments and results, without the name. Tensors that have a gradient come first.
        run: Computes it, without autocast. A result shares no memory with an argument.
        fake: Makes empty results of the shapes, dtypes and strides that `run` returns.
        backward: Computes the gradient, of calls of operators; without it there is none.
        saves_outputs: Whether `backward` reads the results.
        flops: Counts FLOPs from the arguments, which are shapes in place of tensors.
        vmap: The rule of `torch.library.register_vmap`, given the operator as well; by default it runs once per element
            of the mapped dimension.
        mutates: Names of the arguments that it writes to; such an operator has no vmap.
        device: The only type of device that it runs on.

    Returns:
        The operator as a function of all its arguments, by position.
    """

    def compute(*args: Any) -> Any:
        with without_autocast(_first_tensor(args).device):
            return run(*args)

    operator = torch.library.custom_op(
        f"visionattn::{name}", compute, mutates_args=mutates, schema=schema, device_types=device
    )
    operator.register_fake(fake)
    if not mutates:
        rule = vmap or _map_one_by_one
        operator.register_vmap(lambda info, in_dims, *args: rule(operator, info, in_dims, *args))
    if flops is not None:
        register_flop_formula(getattr(torch.ops.visionattn, name))(flops)
    OPERATORS[name] = operator
    under_transforms = operator if backward is None else _differentiate(operator, backward, saves_outputs)

    def call(*args: Any) -> Any:
        if is_forward_mode():
            raise RuntimeError(f"{name}: {NO_FORWARD_MODE}; torch.func.vjp and jacrev work")
        return under_transforms(*args) if is_transformed() else operator(*args)

    return call


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of scores and sums: float32 for half precision, whose own sums would lose too much."""
    return torch.promote_types(dtype, torch.float32)


def first_order_alone(message: str) -> Backward:
    """Return the gradient of an operator that has none: it raises a RuntimeError."""

    def backward(call: Call, *grads: Tensor | None) -> Sequence[Tensor | None]:
        raise RuntimeError(message)

    return backward


def _differentiate(operator: Any, backward: Backward, saves_outputs: bool) -> Callable[..., Any]:
    """Give an operator its gradient. Returns what stands in for it under `torch.func`, which cannot see into it."""

    class Apply(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            results = operator(*args)
            return tuple(results) if isinstance(results, list) else results

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.count = sum(x is None or isinstance(x, Tensor) for x in inputs)
            outputs = ((output,) if isinstance(output, Tensor) else tuple(output)) if saves_outputs else ()
            ctx.save_for_backward(*inputs[: ctx.count], *outputs)
            ctx.settings = inputs[ctx.count :]
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            if all(grad is None for grad in grads):
                return (None,) * len(ctx.needs_input_grad)
            saved = ctx.saved_tensors  # activation checkpointing unpacks them only once
            needed = ctx.needs_input_grad[: ctx.count]
            call = Call(saved[: ctx.count], ctx.settings, saved[ctx.count :], needed)
            return *backward(call, *grads), *(None for _ in ctx.settings)

    operator.register_autograd(Apply.backward, setup_context=Apply.setup_context)
    return Apply.apply


def _first_tensor(args: Sequence[Any]) -> Tensor:
    first = args[0]
    return first if isinstance(first, Tensor) else _first_tensor(first)


def _map_one_by_one(operator: Any, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """Run an operator once per element of the mapped dimension."""

    def element(x: Any, dim: Any, i: int) -> Any:
        if isinstance(x, list) and isinstance(dim, (list, tuple)):
            return [element(*each, i) for each in zip(x, dim, strict=True)]
        return x.select(dim, i) if isinstance(dim, int) else x

    results = [
        operator(*(element(x, dim, i) for x, dim in zip(args, in_dims, strict=True))) for i in range(info.batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    outs = [torch.stack(same) for same in zip(*results, strict=True)]
    return (outs, [0] * len(outs)) if isinstance(results[0], list) else (tuple(outs), (0,) * len(outs))
