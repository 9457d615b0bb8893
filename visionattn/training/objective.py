"""Losses that a training step adds to the loss of the logits."""

from collections.abc import Sequence

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn


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
    return [module for module in model.modules() if hasattr(module, "auxiliary_losses")]


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
