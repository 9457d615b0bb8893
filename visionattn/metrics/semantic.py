"""Mean intersection over union (IoU) of classes and of objects, from predictions per patch or per pixel.

A prediction per patch holds for all its pixels, and is compared with the labels of the pixels. Pixels without a segment
or class do not count.

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
    """Count the pixels of each segment `[B, H, W]` in each patch, row by row: `[B, N, num_ids]`, int64."""
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

    `predicted` is the output of each patch `[B, N]`; the N patches of the grid are ordered row by row.
    """
    pixels = count_pixels(scenes.segments, grid, scenes.classes.shape[1]).double()  # [B, N, S + 1]
    return pixels.mT @ F.one_hot(predicted, num_outputs).double()


class SemanticScores:
    """IoU and accuracy of classes, from one confusion matrix of the pixels of all images.

    A class without a pixel in the labels does not count, even if it is predicted.
    """

    def __init__(self, num_classes: int) -> None:
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64)  # true by predicted

    def update(self, scenes: Segments, overlaps: Tensor) -> None:
        """Add the overlaps `[B, S + 1, C]` of segments with predicted classes."""
        known = scenes.classes >= 0
        classes = F.one_hot(scenes.classes.clamp(min=0), len(self._confusion)).double() * known[..., None]
        self._confusion += torch.einsum("bsc,bsp->cp", classes, overlaps).cpu()

    def update_pixels(self, labels: Tensor, predicted: Tensor) -> None:
        """Add the class of each pixel, -1 for none, and the predicted class, tensors of one shape."""
        known = labels >= 0
        pairs = (labels[known].long() * len(self._confusion) + predicted[known]).cpu()
        # A `bincount` would make another matrix for each batch, of 109 MB for ADE20K's classes.
        self._confusion.view(-1).index_add_(0, pairs, torch.ones(len(pairs), dtype=torch.float64))

    @property
    def pixels(self) -> Tensor:
        """Number of pixels of each class `[C]`, float64."""
        return self._confusion.sum(1)

    @property
    def iou(self) -> Tensor:
        """IoU of each class `[C]`, float64; nan for classes that do not occur."""
        right = self._confusion.diagonal()
        union = self.pixels + self._confusion.sum(0) - right
        return torch.where(self.pixels > 0, right / union, torch.nan)

    @property
    def accuracy(self) -> Tensor:
        """Share of the pixels of each class that are right `[C]`, float64; nan for classes that do not occur."""
        return self._confusion.diagonal() / self.pixels

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of all pixels that are right; None if there are no pixels."""
        count = float(self._confusion.sum())
        return float(self._confusion.trace()) / count if count else None

    @property
    def mean_accuracy(self) -> float | None:
        """Mean accuracy of the classes that occur; None if there are none."""
        return _mean_known(self.accuracy)

    def compute(self) -> float | None:
        """Return the mean IoU of the classes that occur, or None if there are none."""
        return _mean_known(self.iou)


def _mean_known(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None


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
