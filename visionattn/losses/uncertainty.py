"""Weights of several losses, learned with the model."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

BOUND = 10.0


class UncertaintyWeightedLoss(nn.Module):
    """½ Σ (exp(-w_i) L_i + w_i), with a learned w_i per loss, at first 0.

    w_i is the logarithm of a variance: a loss that stays large gets a small weight. It is clamped to ±10, where it has
    no gradient, so that a loss that vanishes does not send its weight to infinity.

    Source: DCAL (arXiv 2205.02151), section 3.4, after "Multi-Task Learning Using Uncertainty to Weigh Losses" (Kendall
    et al., CVPR 2018). The start and the clamp are choices of ours.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Build a weight for each named loss."""
        super().__init__()
        # Of a plain dictionary it would sort the names.
        self.log_variances = nn.ParameterDict([(name, nn.Parameter(torch.zeros(()))) for name in names])

    def _clamped(self, name: str) -> Tensor:
        return self.log_variances[name].clamp(-BOUND, BOUND)

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Add up named losses, each 0-dimensional.

        Raises:
            ValueError: they are not those that were announced.
        """
        if set(losses) != set(self.log_variances):
            raise ValueError(f"expected the losses {', '.join(self.log_variances)}; got {', '.join(losses)}")
        terms = [torch.exp(-self._clamped(name)) * loss + self._clamped(name) for name, loss in losses.items()]
        return 0.5 * torch.stack(terms).sum()

    def weights(self) -> dict[str, Tensor]:
        """Return the factors ½ exp(-w_i), for logs."""
        return {name: 0.5 * torch.exp(-self._clamped(name)).detach() for name in self.log_variances}
