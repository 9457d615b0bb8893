"""From logits of patches to classes of pixels: bilinear interpolation, at all pixels or at some.

Shapes: B images of H × W pixels and h × w patches, C classes, P pixels drawn from each image.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.probing.features.sources import FeatureSource
from visionattn.probing.frozen import TokenLayout

CLASSES_AT_ONCE = 32
"""Number of classes whose full-size logits are in memory at the same time."""


class LabelledFeatures(NamedTuple):
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


def as_map(logits: Tensor, layout: TokenLayout) -> Tensor:
    """Return logits `[B, N, C]` as a map `[B, C, h, w]`."""
    return logits.mT.unflatten(2, layout.grid)


def classify_pixels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class of each pixel `[B, H, W]` after bilinear interpolation of a map of logits `[B, C, h, w]`."""
    best = logits.new_full((len(logits), *size), -torch.inf)
    classes = torch.zeros_like(best, dtype=torch.long)
    for start in range(0, logits.shape[1], CLASSES_AT_ONCE):
        part = logits[:, start : start + CLASSES_AT_ONCE]
        values, found = F.interpolate(part, size, mode="bilinear", align_corners=False).max(1)
        better = values > best
        best, classes = torch.where(better, values, best), torch.where(better, found + start, classes)
    return classes


def logits_at(logits: Tensor, pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate a map of logits `[B, C, h, w]` at pixels `[B, P]`, numbered row by row: `[B, C, P]`."""
    height, width = size
    x, y = pixels % width, pixels // width
    places = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)  # [B, P, 2], from -1 to 1
    found = F.grid_sample(logits, places[:, None], padding_mode="border", align_corners=False)
    return found[:, :, 0]


def draw_pixels(rng: np.random.Generator, count: int, images: int, size: tuple[int, int]) -> Tensor:
    """Draw `count` pixels of each image with replacement, or take all if there are no more: `[images, P]`."""
    total = size[0] * size[1]
    if count >= total:
        return torch.arange(total).expand(images, -1)
    return torch.from_numpy(rng.integers(total, size=(images, count)))
