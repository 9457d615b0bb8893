"""Labels of patches: on which segment of its image each of them lies, and which pairs of them lie on the same.

Shapes: B images of H × W pixels and at most S segments, N patches.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Segments(Protocol):
    """Images with the segments that they are made of, as `visionattn.data.scenes.SceneBatch`."""

    @property
    def segments(self) -> Tensor:
        """Ids of the segments `[B, H, W]`, from 1 on; 0 for positions without one."""

    @property
    def classes(self) -> Tensor:
        """Class of each segment by its id `[B, S + 1]`; -1 for none."""

    @property
    def things(self) -> Tensor:
        """Whether a segment is an object `[B, S + 1]`, bool."""


class PatchPairs(NamedTuple):
    """What is known of pairs of patches, `[B, N, N]` each, bool.

    Attributes:
        same: Whether both lie on the same segment.
        counted: Whether they are two patches, and both of known segments.
        foreground: Whether both lie on objects, and they are counted.
    """

    same: Tensor
    counted: Tensor
    foreground: Tensor


@dataclass(frozen=True)
class PatchLabels:
    """Labels of patches, `[B, N]` each.

    Attributes:
        instances: Id of the segment that has most of a patch's pixels; 0 where none has, or too few.
        purity: Its share of these pixels.
        classes: Its class, -1 for none.
        things: Whether it is an object.
    """

    instances: Tensor
    purity: Tensor
    classes: Tensor
    things: Tensor

    def pairs(self) -> PatchPairs:
        """All pairs of patches of an image."""
        known = self.instances > 0
        counted = known[:, :, None] & known[:, None, :]
        counted.diagonal(dim1=1, dim2=2).fill_(False)
        same = self.instances[:, :, None] == self.instances[:, None, :]
        return PatchPairs(same, counted, counted & self.things[:, :, None] & self.things[:, None, :])

    def take(self, index: Tensor) -> "PatchLabels":
        """Those of some patches, by their places `[B, P]`."""
        return PatchLabels(
            *(values.gather(1, index) for values in (self.instances, self.purity, self.classes, self.things))
        )


def label_patches(scenes: Segments, grid: tuple[int, int], min_purity: float = 0.0) -> PatchLabels:
    """Labels each patch by the segment that most of its pixels belong to, of equal ones that with the lower id.

    A pixel belongs to the patch that its upper left corner lies on, should the grid not divide the image.

    Args:
        scenes: The images.
        grid: Rows and columns of patches.
        min_purity: Patches of which no segment has so large a share get no label.
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


def count_pixels(segments: Tensor, grid: tuple[int, int], num_ids: int) -> Tensor:
    """Pixels of each segment in each patch, `[B, N, num_ids]`, int64.

    Args:
        segments: `[B, H, W]`, ids below `num_ids`.
        grid: Rows and columns of patches, row by row of which the N patches come.
        num_ids: How many ids there are, 0 among them.
    """
    rows, columns = grid
    height, width = segments.shape[1:]
    y, x = (torch.arange(length, device=segments.device) for length in (height, width))
    cells = (y * rows // height)[:, None] * columns + x * columns // width  # [H, W]
    image = torch.arange(len(segments), device=segments.device)[:, None, None] * (rows * columns)
    flat = (image + cells) * num_ids + segments
    counts = torch.bincount(flat.flatten(), minlength=len(segments) * rows * columns * num_ids)
    return counts.view(len(segments), rows * columns, num_ids)


def sample_patches(labels: PatchLabels, count: int, generator: torch.Generator) -> Tensor | None:
    """Places `[B, count]` of patches drawn at random, labelled ones first; None if there are no more than `count`.

    Args:
        labels: Of all patches.
        count: How many to draw from each image.
        generator: On the CPU, so that every device draws the same.
    """
    known = labels.instances > 0
    if known.shape[1] <= count:
        return None
    order = torch.rand(known.shape, generator=generator).to(known.device) + ~known
    return order.argsort(dim=1)[:, :count].sort(dim=1).values
