"""Mean intersection over union (IoU) of classes and of objects, from predictions per patch.

A prediction holds for all pixels of its patch, and is compared with the labels of the pixels. Pixels without a segment
do not count.

Shapes: B images of at most S segments, N patches, C outputs (classes or queries).
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Segments(Protocol):
    """Segmentation of a batch of images, such as `visionattn.data.scenes.SceneBatch`."""

    @property
    def segments(self) -> Tensor:
        """Id of the segment of each pixel `[B, H, W]`, from 1; 0 for pixels without a segment."""

    @property
    def classes(self) -> Tensor:
        """Class of each segment by its id `[B, S + 1]`; -1 for none."""

    @property
    def things(self) -> Tensor:
        """Mask of the segments that are objects `[B, S + 1]`, bool."""


def count_pixels(segments: Tensor, grid: tuple[int, int], num_ids: int) -> Tensor:
    """Count the pixels of each segment in each patch: `[B, N, num_ids]`, int64.

    Args:
        segments: Ids below `num_ids`, `[B, H, W]`.
        grid: Rows and columns of patches; the N patches are ordered row by row.
        num_ids: Number of ids, including 0.
    """
    rows, columns = grid
    height, width = segments.shape[1:]
    y, x = (torch.arange(length, device=segments.device) for length in (height, width))
    cells = (y * rows // height)[:, None] * columns + x * columns // width  # [H, W]
    image = torch.arange(len(segments), device=segments.device)[:, None, None] * (rows * columns)
    flat = (image + cells) * num_ids + segments
    counts = torch.bincount(flat.flatten(), minlength=len(segments) * rows * columns * num_ids)
    return counts.view(len(segments), rows * columns, num_ids)


def count_overlaps(scenes: Segments, predicted: Tensor, grid: tuple[int, int], num_outputs: int) -> Tensor:
    """Count the pixels of each segment that are predicted as each output: `[B, S + 1, C]`, whole numbers in float64.

    Args:
        scenes: Segments of the images.
        predicted: Predicted output of each patch `[B, N]`.
        grid: Rows and columns of patches.
        num_outputs: Number of outputs, C.
    """
    pixels = count_pixels(scenes.segments, grid, scenes.classes.shape[1]).double()  # [B, N, S + 1]
    return pixels.mT @ F.one_hot(predicted, num_outputs).double()


class SemanticIoU:
    """Mean IoU over the classes that occur, each computed from the pixels of all images."""

    def __init__(self, num_classes: int) -> None:
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64)  # true by predicted

    def update(self, scenes: Segments, overlaps: Tensor) -> None:
        """Add the overlaps `[B, S + 1, C]` of segments with predicted classes."""
        known = scenes.classes >= 0
        classes = F.one_hot(scenes.classes.clamp(min=0), len(self._confusion)).double() * known[..., None]
        self._confusion += torch.einsum("bsc,bsp->cp", classes, overlaps).cpu()

    def compute(self) -> float | None:
        """Return the mean, or None if no class occurs."""
        right, true, predicted = self._confusion.diagonal(), self._confusion.sum(1), self._confusion.sum(0)
        occurs = true > 0
        rates = right[occurs] / (true + predicted - right)[occurs]
        return float(rates.mean()) if len(rates) else None


class InstanceIoU:
    """Mean over all objects of the IoU of each object and its query.

    Hungarian matching assigns queries to all segments of an image, so that the sum of their IoU is largest. A segment
    without a query has an IoU of 0. The mean is taken over the objects alone.
    """

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def update(self, scenes: Segments, overlaps: Tensor) -> None:
        """Add the overlaps `[B, S + 1, C]` of segments with predicted queries."""
        from scipy.optimize import linear_sum_assignment

        overlaps = overlaps[:, 1:].cpu()
        true, predicted = overlaps.sum(2, keepdim=True), overlaps.sum(1, keepdim=True)
        rates = overlaps / (true + predicted - overlaps).clamp(min=1)  # [B, S, C]
        for rate, present, thing in zip(rates, true[..., 0] > 0, scenes.things[:, 1:].cpu(), strict=True):
            ids = present.nonzero()[:, 0]
            rows, columns = linear_sum_assignment(rate[ids].numpy(), maximize=True)
            matched = torch.zeros(len(present), dtype=rate.dtype)
            matched[ids[rows]] = rate[ids[rows], columns]
            self._sum += float(matched[present & thing].sum())
            self._count += int((present & thing).sum())

    def compute(self) -> float | None:
        """Return the mean, or None if there is no object."""
        return self._sum / self._count if self._count else None
