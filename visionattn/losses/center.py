"""Images of an identity drawn towards their centre."""

import torch
from torch import Tensor, distributed, nn


class CenterLoss(nn.Module):
    """Half the squared distance of features to the centre of their class, mean over the batch.

    The centres follow the features by a rule of their own and get no gradient (Wen et al., "A Discriminative Feature
    Learning Approach for Deep Face Recognition", ECCV 2016, equations 2 to 4): c ← c + rate · Σ (x − c) / (1 + n), over
    the n features x of the class in the batch, of all processes together.

    Args:
        num_classes: identities of the training images.
        num_features: width of the features.
        rate: of the centres; between 0 and 1.

    Raises:
        ValueError: a rate out of its bounds.
    """

    centers: Tensor

    def __init__(self, num_classes: int, num_features: int, rate: float = 0.5) -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise ValueError(f"rate must lie in (0, 1], got {rate}")
        self.rate = rate
        self.register_buffer("centers", torch.zeros(num_classes, num_features))

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Return the loss of features [B, D] of classes [B]; in training mode the centres then move."""
        offset = features.float() - self.centers[target]
        if self.training:
            self._follow(offset.detach(), target)
        return offset.square().sum(1).mean() / 2

    @torch.no_grad()
    def _follow(self, offset: Tensor, target: Tensor) -> None:
        counted = torch.cat([offset, torch.ones_like(offset[:, :1])], dim=1)
        sums = self.centers.new_zeros(len(self.centers), counted.shape[1]).index_add_(0, target, counted)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        self.centers.add_(self.rate * sums[:, :-1] / (1 + sums[:, -1:]))
