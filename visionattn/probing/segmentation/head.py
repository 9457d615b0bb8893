"""The head that classifies the patches of an image, and through them its pixels.

Shapes: B images of N patches in h rows and w columns, width D, C classes.
"""

from torch import Tensor, nn

WEIGHT_STD = 0.01
"""Standard deviation of initial weights, as in DINOv2's linear head."""


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
        return self.classifier(self.norm(patches.flatten(0, 1)).view_as(patches))
