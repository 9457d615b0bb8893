"""Losses of classifiers, with one label per image or several, and weights of rare classes."""

from typing import Any, Literal

import torch
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

LossName = Literal["ce", "bce", "focal"]

MOST = 100.0
"""Largest weight of the images of a class in sigmoid losses; the smallest is its inverse."""


def class_weights(counts: Tensor) -> Tensor:
    """Return weights [K] of softmax losses, n / (K·n_k): those with which all classes count equally.

    ``counts`` [K] has the number of training images of each class; one without images has the weight 1, and does not
    count in n and K.
    """
    occurs = counts > 0
    mean = counts.sum() / occurs.sum()
    return torch.where(occurs, mean / counts, 1.0)


def positive_weights(counts: Tensor, num_images: int) -> Tensor:
    """Return weights [K] of the images of a class in sigmoid losses, (n - n_k) / n_k, from 1/100 to 100.

    With these, the images with a class count as much as those without it. A class without images has the weight 1.
    """
    return torch.where(counts > 0, (num_images - counts) / counts, 1.0).clamp(1 / MOST, MOST)


class FocalLoss(nn.Module):
    """Cross-entropy times (1 - p)^gamma, where p is the probability of what is true of an image.

    Images that are already classified well count less. Multi-hot targets [B, K] in place of class indices [B] choose
    the sigmoid instead of the softmax; p is then that of a class being there, or not.

    Args:
        gamma: strength; 0 is cross-entropy.
        weight: weight of each class [K], as in torch's ``CrossEntropyLoss``.
        pos_weight: weight of the images of each class [K], as in torch's ``BCEWithLogitsLoss``.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, https://arxiv.org/abs/1708.02002, eq. 4.
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(self, gamma: float = 2.0, weight: Tensor | None = None, pos_weight: Tensor | None = None) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of logits [B, K]."""
        if target.ndim == 1:
            entropy = F.cross_entropy(logits, target, reduction="none")
            weight = None if self.weight is None else self.weight[target]
            total = len(target) if weight is None else weight.sum()
        else:
            entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            weight = None if self.pos_weight is None else torch.where(target > 0, self.pos_weight, 1.0)
            total = target.numel()
        # 1 - p. If it is exactly 0 and gamma less than 1, the gradient of its power is infinite; torchvision's
        # sigmoid_focal_loss then gives NaN.
        wrong = -torch.expm1(-entropy)
        loss = entropy * wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** self.gamma
        return (loss if weight is None else loss * weight).sum() / total


def create_criterion(
    loss: LossName, *, smoothing: float = 0.0, gamma: float = 2.0, weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
) -> nn.Module:  # fmt: skip
    """Return a loss of logits [B, K] and targets: class indices [B], or shares or multi-hot labels [B, K].

    Args:
        loss: ``ce``, ``bce`` or ``focal``.
        smoothing: label smoothing of ``ce`` and ``bce``; it moves multi-hot labels towards a half.
        gamma: of ``focal``.
        weight: weight of each class in softmax losses [K].
        pos_weight: weight of the images of each class in sigmoid losses [K].
    """
    criterion: Any
    if loss == "ce":
        criterion = nn.CrossEntropyLoss(weight, label_smoothing=smoothing)
    elif loss == "bce":
        criterion = BinaryCrossEntropy(smoothing, pos_weight=pos_weight, smooth_dense=True)
    else:
        criterion = FocalLoss(gamma, weight, pos_weight)
    # The training images decide weights, so that checkpoints need not hold them.
    for name, buffer in list(criterion.named_buffers(remove_duplicate=False)):
        criterion.register_buffer(name, buffer, persistent=False)
    return criterion
