"""Neck between the compared features and the classifier."""

from torch import Tensor, nn


class BNNeck(nn.Module):
    """Batch norm without a shift, then a classifier without a bias.

    Distances are taken before the neck, where features are free; the classifier works on normalised ones, so that the
    two losses do not pull on the same scale (Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
    Re-identification", 2019, https://arxiv.org/abs/1903.07071).

    Args:
        num_features: width of the features.
        num_classes: identities of the training images.

    Attributes:
        norm: batch norm, with a bias of 0.
        classifier: linear layer on the output of the norm.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(num_features)
        self.norm.bias.requires_grad_(False)
        self.classifier = nn.Linear(num_features, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, num_classes] of features [B, num_features]."""
        return self.classifier(self.norm(features))
