"""Labels of patches and of pairs of patches, from the segments of an image.

Shapes: B images of H × W pixels and at most S segments, N patches.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from visionattn.metrics.semantic import Segments, count_pixels


class PatchPairs(NamedTuple):
    """Labels of pairs of patches, `[B, N, N]` each, bool.

    Attributes:
        same: Whether both patches lie on the same segment.
        counted: Whether the patches differ, and both have a segment.
        foreground: Whether the pair is counted, and both patches lie on objects.
    """

    same: Tensor
    counted: Tensor
    foreground: Tensor


@dataclass(frozen=True)
class PatchLabels:
    """Labels of patches, `[B, N]` each.

    Attributes:
        instances: Id of the segment with most of the patch's pixels; 0 for none.
        purity: Share of the patch's pixels that belong to this segment.
        classes: Class of the segment; -1 for none.
        things: Whether the segment is an object.
    """

    instances: Tensor
    purity: Tensor
    classes: Tensor
    things: Tensor

    def pairs(self) -> PatchPairs:
        """Label all pairs of patches within each image."""
        known = self.instances > 0
        counted = known[:, :, None] & known[:, None, :]
        counted.diagonal(dim1=1, dim2=2).fill_(False)
        same = self.instances[:, :, None] == self.instances[:, None, :]
        return PatchPairs(same, counted, counted & self.things[:, :, None] & self.things[:, None, :])

    def take(self, index: Tensor) -> "PatchLabels":
        """Select the labels of the patches at `index` `[B, P]`."""
        return PatchLabels(*(values.gather(1, index) for values in vars(self).values()))


def label_patches(scenes: Segments, grid: tuple[int, int], min_purity: float = 0.0) -> PatchLabels:
    """Label each patch with the segment that has most of its pixels; of equal segments, the one with the lower id.

    If the grid does not divide the image, a pixel belongs to the patch that holds its upper left corner.

    Args:
        scenes: Segments of the images.
        grid: Rows and columns of patches.
        min_purity: Smallest share of its pixels that a patch's segment must have; other patches get no label.
    """
    segments, num_ids = scenes.segments, scenes.classes.shape[1]
    counts = count_pixels(segments, grid, num_ids)  # [B, N, S + 1]
    by_rank = counts * num_ids - torch.arange(num_ids, device=counts.device)  # no two are equal
    instances = by_rank.argmax(-1)
    purity = counts.gather(-1, instances[..., None])[..., 0] / counts.sum(-1).clamp(min=1)
    instances = instances.masked_fill(purity < min_purity, 0)
    things = scenes.things.gather(1, instances) & (instances > 0)
    classes = scenes.classes.gather(1, instances).masked_fill(instances == 0, -1)
    return PatchLabels(instances, purity, classes, things)


def sample_patches(labels: PatchLabels, count: int, generator: torch.Generator) -> Tensor | None:
    """Draw `count` patches of each image at random, labelled ones first, with a generator on the CPU for every device.

    Returns:
        Indices of the patches `[B, count]`, or None if there are no more than `count` patches.
    """
    known = labels.instances > 0
    if known.shape[1] <= count:
        return None
    order = torch.rand(known.shape, generator=generator).to(known.device) + ~known
    return order.argsort(dim=1)[:, :count].sort(dim=1).values
