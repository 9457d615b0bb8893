"""Heads that classify the patches of an image, and through them its pixels.

Shapes: B images of N patches in h rows and w columns, width D, C classes.
"""

import torch
from torch import Tensor, nn

from visionattn.errors import UserError
from visionattn.suggestions import suggest

WEIGHT_STD = 0.01
"""Standard deviation of initial weights of classifiers, as in DINOv2's linear head."""


class LinearSegmenter(nn.Module):
    """Batch norm and a 1×1 convolution (DINOv2's linear head, https://arxiv.org/abs/2304.07193, §7.4).

    Args:
        dim: Width of the patches.
        num_classes: Number of classes.
        batch_norm: Whether patches are normalised first, without trained parameters.
    """

    def __init__(self, dim: int, num_classes: int, batch_norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False) if batch_norm else nn.Identity()
        self.classifier = nn.Linear(dim, num_classes)
        nn.init.normal_(self.classifier.weight, std=WEIGHT_STD)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Return logits `[B, N, C]` of patches `[B, N, D]`."""
        return self.classifier(self.normalize(patches))

    def normalize(self, patches: Tensor) -> Tensor:
        """Normalise patches `[B, N, D]`, over all images and places in training."""
        return self.norm(patches.flatten(0, 1)).view_as(patches)


class AttentiveSegmenter(LinearSegmenter):
    """The linear head, and a query per class that looks for the class in the whole image.

    Queries attend to all patches, as those of efficient probing (https://arxiv.org/abs/2506.10178) do. Each gathers a
    mean patch, which a second classifier scores. The score is added to the logits of its class at every patch. At first
    it is 0, so that the head starts as the linear one.
    """

    def __init__(self, dim: int, num_classes: int, batch_norm: bool = True) -> None:
        super().__init__(dim, num_classes, batch_norm)
        self.queries = nn.Parameter(torch.randn(num_classes, dim) * dim**-0.5)
        self.evidence = nn.Parameter(torch.zeros(num_classes, dim))

    def forward(self, patches: Tensor) -> Tensor:
        """Return logits `[B, N, C]` of patches `[B, N, D]`."""
        x = self.normalize(patches)
        attention = (self.queries @ x.mT).softmax(-1)  # [B, C, N]
        score = ((attention @ x) * self.evidence).sum(-1)  # [B, C]
        return self.classifier(x) + score[:, None]


HEADS: dict[str, type[LinearSegmenter]] = {"linear": LinearSegmenter, "attentive": AttentiveSegmenter}
"""Heads by name."""


def check_head(name: str) -> None:
    """Raise a UserError unless there is a head of this name."""
    if name not in HEADS:
        near = suggest(name, HEADS) or f"; there are {', '.join(HEADS)}"
        raise UserError(f"no segmentation head is named {name!r}{near}")
