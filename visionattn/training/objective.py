"""What a training step minimises beside the loss of the logits."""

from collections.abc import Callable, Sequence

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn


def extra_losses(model: nn.Module, l2_penalty: float = 0.0, weights: Sequence[Tensor] = ()) -> dict[str, Tensor]:
    """Losses to add to that of the logits, by name; 0-dimensional, weighted and differentiable.

    Args:
        model: where it has a method ``auxiliary_losses()``, that says what its latest forward pass adds to the
            objective; it is not asked in evaluation mode, in which a probed backbone is.
        l2_penalty: factor of the sum, over ``weights``, of each one's L2 norm, not squared; 0 for none. The pull on a
            tensor does not weaken as it gets smaller, so that those that are not needed vanish as a whole.
            Terminator's paper leaves open whether the norm is that of each tensor or of all together; of all together
            it would be next to nothing at the published factors.
        weights: the tensors that are penalised.
    """
    method: Callable[[], dict[str, Tensor]] | None = getattr(model, "auxiliary_losses", None)
    losses = dict(method()) if method is not None and model.training else {}
    if l2_penalty:
        losses["l2"] = l2_penalty * torch.stack(torch._foreach_norm(list(weights))).sum()
    return losses


def widened(x: Tensor) -> Tensor:
    """What a loss is computed of: ``x``, in float32 where it has less, as autocast does for losses on GPUs alone."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def decayed_weights(model: nn.Module) -> list[Tensor]:
    """The trained tensors that weight decay applies to: no biases, no norms, nothing in ``no_weight_decay()``.

    (Terminator's frequencies, which are in there, outweigh all else ten thousand times.)
    """
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    groups = param_groups_weight_decay(model, weight_decay=1.0, no_weight_decay_list=exempt)
    return [weight for group in groups if group["weight_decay"] for weight in group["params"]]
