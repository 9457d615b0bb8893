"""What a training step minimises beside the loss of the logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def extra_losses(model: nn.Module, l2_penalty: float) -> dict[str, Tensor]:
    """Losses to add to that of the logits, by name; 0-dimensional, weighted and differentiable.

    Args:
        model: where it has a method ``auxiliary_losses()``, that says what its latest forward pass adds to the
            objective; it is not asked in evaluation mode, in which a probed backbone is.
        l2_penalty: weight of the sum, over the trained tensors, of each one's L2 norm, not squared; 0 for none. The
            pull on a tensor does not weaken as it gets smaller, so that those that are not needed vanish as a whole.
            Terminator's paper leaves open whether the norm is that of each tensor or of all weights together; of all
            together it would be next to nothing at the published factors.
    """
    method: Callable[[], dict[str, Tensor]] | None = getattr(model, "auxiliary_losses", None)
    losses = dict(method()) if method is not None and model.training else {}
    if l2_penalty:
        weights: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        losses["l2"] = l2_penalty * torch.stack(torch._foreach_norm(weights)).sum()
    return losses
