"""From logits of patches to classes of pixels: bilinear interpolation, at all pixels or at some.

Shapes: B images of H × W pixels and h × w patches, C classes, P pixels drawn from each image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.probing.features.sources import FeatureSource
from visionattn.probing.frozen import TokenLayout

CLASSES_AT_ONCE = 32
"""Number of classes whose full-size logits are in memory at the same time."""


@dataclass(frozen=True)
class LabelledFeatures:
    """Patches of images, and the class of each pixel.

    Attributes:
        source: Tokens.
        layout: Their layout.
        labels: From indices of images `[b]` to label maps `[b, H, W]`, int64, -1 for unlabelled pixels.
    """

    source: FeatureSource
    layout: TokenLayout
    labels: Callable[[np.ndarray], Tensor]

    def __len__(self) -> int:
        return len(self.source)


def classify_pixels(logits: Tensor, grid: tuple[int, int], size: Sequence[int]) -> Tensor:
    """Return the class of each pixel `[B, H, W]` after bilinear interpolation of the logits of patches `[B, N, C]`.

    Args:
        logits: Logits of the patches, row by row.
        grid: Rows and columns of patches.
        size: Height and width of the images.
    """
    maps = logits.mT.unflatten(2, grid)  # [B, C, h, w]
    best = maps.new_full((len(maps), *size), -torch.inf)
    classes = torch.zeros_like(best, dtype=torch.long)
    for start in range(0, maps.shape[1], CLASSES_AT_ONCE):
        part = maps[:, start : start + CLASSES_AT_ONCE]
        values, found = F.interpolate(part, list(size), mode="bilinear", align_corners=False).max(1)
        better = values > best
        best, classes = torch.where(better, values, best), torch.where(better, found + start, classes)
    return classes


class Corners(NamedTuple):
    """The four patches around each of P pixels of B images, for bilinear interpolation.

    Attributes:
        patches: Numbers of the patches `[B * P, 4]`, over all images.
        shares: Their weights `[B * P, 4]`.
    """

    patches: Tensor
    shares: Tensor

    @classmethod
    def of(cls, pixels: Tensor, grid: tuple[int, int], size: Sequence[int]) -> "Corners":
        """Find the patches around pixels `[B, P]`, numbered row by row in images of a size."""
        (rows, columns), (height, width) = grid, size
        y = ((pixels // width + 0.5) * (rows / height) - 0.5).clamp(0, rows - 1)  # the centre of the first patch is 0
        x = ((pixels % width + 0.5) * (columns / width) - 0.5).clamp(0, columns - 1)
        top, left = y.long(), x.long()
        bottom, right = (top + 1).clamp(max=rows - 1), (left + 1).clamp(max=columns - 1)
        y, x = y - top, x - left
        image = torch.arange(len(pixels), device=pixels.device)[:, None] * (rows * columns)
        numbers = [image + row * columns + column for row in (top, bottom) for column in (left, right)]
        shares = [(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x]
        return cls(torch.stack(numbers, -1).flatten(0, 1), torch.stack(shares, -1).flatten(0, 1))

    def interpolate(self, logits: Tensor) -> Tensor:
        """Interpolate logits of patches `[B, N, C]` at the pixels: `[B * P, C]`."""
        return F.embedding_bag(self.patches, logits.flatten(0, 1), per_sample_weights=self.shares, mode="sum")


def draw_pixels(rng: np.random.Generator, count: int, images: int, size: Sequence[int]) -> Tensor:
    """Draw `count` pixels of each image with replacement, or take all if there are no more: `[images, P]`."""
    total = size[0] * size[1]
    if count >= total:
        return torch.arange(total).expand(images, -1)
    return torch.from_numpy(rng.integers(total, size=(images, count)))
