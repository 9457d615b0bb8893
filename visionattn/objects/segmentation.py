"""How well linear heads on patches segment images: mean intersection over union of classes and of objects.

A patch says the same of all its pixels; the truth is that of the pixels. Pixels that belong to no segment do not count.

Shapes: B images of at most S segments, N patches, C outputs (classes or queries).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.objects.patches import Segments, count_pixels


def count_overlaps(scenes: Segments, predicted: Tensor, grid: tuple[int, int], num_outputs: int) -> Tensor:
    """Pixels of each segment that are predicted as each output, `[B, S + 1, C]`, float64 but whole.

    Args:
        scenes: The images.
        predicted: Output of each patch `[B, N]`.
        grid: Rows and columns of patches.
        num_outputs: C.
    """
    pixels = count_pixels(scenes.segments, grid, scenes.classes.shape[1]).double()  # [B, N, S + 1]
    return pixels.mT @ F.one_hot(predicted, num_outputs).double()


class SemanticIoU:
    """Mean over the classes that occur of the IoU of all pixels of a class, in all images."""

    def __init__(self, num_classes: int) -> None:
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64)  # true by predicted

    def update(self, scenes: Segments, overlaps: Tensor) -> None:
        """Takes account of overlaps `[B, S + 1, C]` with classes."""
        known = scenes.classes >= 0
        classes = F.one_hot(scenes.classes.clamp(min=0), len(self._confusion)).double() * known[..., None]
        self._confusion += torch.einsum("bsc,bsp->cp", classes, overlaps).cpu()

    def compute(self) -> float | None:
        """The mean; None where there is no class."""
        right, true, predicted = self._confusion.diagonal(), self._confusion.sum(1), self._confusion.sum(0)
        occurs = true > 0
        rates = right[occurs] / (true + predicted - right)[occurs]
        return float(rates.mean()) if len(rates) else None


class InstanceIoU:
    """Mean over all objects of the IoU of each with the query that it is matched with.

    The segments of an image, objects and others, are matched with queries such that the sum of their IoU is greatest
    (Hungarian matching); a segment without a query has 0. The mean is that of the objects.
    """

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def update(self, scenes: Segments, overlaps: Tensor) -> None:
        """Takes account of overlaps `[B, S + 1, C]` with queries."""
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
        """The mean; None where there is no object."""
        return self._sum / self._count if self._count else None
