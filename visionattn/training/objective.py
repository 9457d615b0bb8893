"""Parts of a training step that modules define: losses of their own, measurements, buffers that change."""

from collections.abc import Sequence

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

METHODS = ("auxiliary_losses", "measurements", "update_buffers")
"""Methods of modules that a training step calls."""


def extra_losses(model: nn.Module, l2_penalty: float = 0.0, weights: Sequence[Tensor] = ()) -> dict[str, Tensor]:
    """Return losses to add to that of the logits, by name: 0-dimensional, weighted and differentiable.

    Args:
        model: a model. It, or else its modules, may have a method ``auxiliary_losses()`` that returns the losses of the
            latest forward pass; those of one name are added. The method is not called in evaluation mode, the mode of a
            probed backbone.
        l2_penalty: factor of the sum of the L2 norms, not squared, of ``weights``; 0 for none. The pull on a tensor
            does not weaken as the tensor shrinks, so unnecessary tensors vanish as a whole. Terminator's paper leaves
            open whether the norm is taken per tensor or over all; over all it would be negligible at the published
            factors.
        weights: the penalised tensors.
    """
    losses: dict[str, Tensor] = {}
    for module in modules_with_losses(model) if model.training else ():
        for name, loss in module.auxiliary_losses().items():  # type: ignore[operator]
            losses[name] = losses[name] + loss if name in losses else loss
    if l2_penalty:
        # Private: torch has no public function for the norm of each tensor of a list.
        losses["l2"] = l2_penalty * torch.stack(torch._foreach_norm(list(weights))).sum()
    return losses


def modules_with_losses(model: nn.Module) -> list[nn.Module]:
    """Return the model if it has a method ``auxiliary_losses``, or else those of its modules that have one."""
    if hasattr(model, "auxiliary_losses"):
        return [model]
    return modules_with(model, "auxiliary_losses")


def modules_with(model: nn.Module, method: str) -> list[nn.Module]:
    """Return the modules of a model, itself included, whose class has a method of this name."""
    # A class answers faster than a module, which looks through parameters, buffers and submodules.
    return [module for module in model.modules() if hasattr(type(module), method)]


def measurements(model: nn.Module) -> dict[str, Tensor]:
    """Return numbers about the latest forward pass to log, by name: 0-dimensional, without gradients.

    Args:
        model: a model in training mode, whose modules may have a method ``measurements()`` that returns such numbers.
            Several of one name give their mean.
    """
    found: dict[str, list[Tensor]] = {}
    for module in modules_with(model, "measurements") if model.training else ():
        for name, value in module.measurements().items():  # type: ignore[operator]
            found.setdefault(name, []).append(value)
    return {name: torch.stack(values).mean() for name, values in found.items()}


def update_buffers(model: nn.Module) -> None:
    """Let modules with a method ``update_buffers()`` take in what they saw in a step, after its backward passes.

    Forward passes must leave such buffers alone: activations that are recomputed in a backward pass would differ.
    """
    for module in modules_with(model, "update_buffers"):
        module.update_buffers()  # type: ignore[operator]


def widened(x: Tensor) -> Tensor:
    """Return ``x`` in at least float32, for losses; autocast does this on GPUs only."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def decayed_weights(model: nn.Module) -> list[Tensor]:
    """Return the trained tensors that weight decay applies to: no biases, no norms, nothing in ``no_weight_decay()``.

    The last excludes Terminator's frequencies, which are ten thousand times larger than all else.
    """
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    groups = param_groups_weight_decay(model, weight_decay=1.0, no_weight_decay_list=exempt)
    return [weight for group in groups if group["weight_decay"] for weight in group["params"]]
