"""Triplets of the hardest images of a batch."""

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn


class BatchHardTripletLoss(nn.Module):
    """Mean, over the images of a batch, of log(1 + exp(d(a, p) − d(a, n))) with the hardest p and n of each.

    p is the farthest image of the same identity, n the nearest one of another; distances are Euclidean, between
    features as they are, in single precision (Hermans et al., "In Defense of the Triplet Loss", 2017,
    https://arxiv.org/abs/1703.07737, equation 5 with the soft margin). A batch without such pairs has a loss of 0.
    """

    def __init__(self) -> None:
        super().__init__()
        distance = LpDistance(normalize_embeddings=False)
        self.miner = BatchHardMiner(distance=distance)
        self.triplets = TripletMarginLoss(margin=0.0, smooth_loss=True, distance=distance, reducer=MeanReducer())

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Return the loss of features [B, D] of identities [B]."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            loss: Tensor = self.triplets(features, target, self.miner(features, target))
        return loss
