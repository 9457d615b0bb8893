"""Measures of object discovery: how well segments that a model proposes agree with those that a scene is made of.

Segments are maps of ids, `[H, W]` or `[B, H, W]`, small whole numbers as tables of all pairs are counted. In a true map
0 stands for positions without a label, or where objects overlap: they are left out of every
measure. Predicted ids count from 0 on; a negative one is no segment, so that no object can be found there, and for ARI
all such positions are one more segment. Everything is counted in whole numbers, and divided in float64.

A measure that an image cannot have, as it has no object or no labelled position, is NaN; the classes for torchmetrics
leave such images out of their mean.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

UNLABELLED = 0


def adjusted_rand_index(predicted: Tensor, segments: Tensor) -> Tensor:
    """Return ARI over all labelled positions (Hubert and Arabie, "Comparing partitions", 1985).

    Two maps with the same groups of positions score 1, also where all are in one group or each in its own.

    Args:
        predicted: Ids `[..., H, W]` from 0 on; negative for no segment.
        segments: True ids `[..., H, W]`; 0 for unlabelled positions.

    Returns:
        `[...]`, at most 1, and about 0 by chance.
    """
    return _rand_index(_count(predicted, segments))


def foreground_ari(predicted: Tensor, segments: Tensor, things: Tensor) -> Tensor:
    """Return FG-ARI, ARI over the positions of objects alone (Greff et al., arXiv 1903.00450).

    It ignores whether objects are separated from the background. Ids are `[..., H, W]` and `things` `[..., S + 1]`,
    as in `mean_best_overlap`.
    """
    counts = _count(predicted, segments)
    return _rand_index(counts * _fit(things, counts.shape[-1])[..., None, :])


def mean_best_overlap(predicted: Tensor, segments: Tensor, things: Tensor, classes: Tensor | None = None) -> Tensor:
    """Return mBO, the best IoU of any predicted segment with each object, averaged (arXiv 2209.14860).

    Args:
        predicted: Ids `[..., H, W]` from 0 on; negative for no segment.
        segments: True ids `[..., H, W]`; 0 for unlabelled positions.
        things: Which segments are objects, `[..., S + 1]`.
        classes: Of the segments, `[..., S + 1]`: objects of one class then count as one, which is mBO_c. Without them
            each counts, which is mBO_i.
    """
    counts = _count(predicted, segments)
    chosen = _fit(things, counts.shape[-1])
    if classes is not None:
        counts, chosen = _merge(counts, chosen, classes)
    sizes = counts.sum(-2)
    chosen = chosen & (sizes > 0)
    overlaps = counts[..., 1:, :]
    unions = overlaps.sum(-1, keepdim=True) + sizes[..., None, :] - overlaps
    best = (overlaps.double() / unions.clamp(min=1)).amax(-2)
    return (best * chosen).sum(-1) / chosen.sum(-1)


def correct_localization(predicted: Tensor, segments: Tensor, things: Tensor) -> Tensor:
    """Return CorLoc: 1 if some predicted box has an IoU above 0.5 with the box of some object, else 0.

    Boxes, not masks, as with Deselaers et al. (2010), who brought the measure up, and with DINOSAUR (arXiv 2209.14860);
    they hold whole positions, so that a segment of one position has a box of area 1. Predicted boxes go around all of a
    segment, whatever is labelled there. Ids are `[..., H, W]` and `things` `[..., S + 1]`, as in `mean_best_overlap`.
    """
    _check(predicted, segments)
    proposed, real = _boxes(predicted, 0), _boxes(segments, 1)
    real = torch.where(_fit(things[..., 1:], real.shape[-2])[..., None], real, 0)
    first = torch.maximum(proposed[..., :, None, :2], real[..., None, :, :2])
    last = torch.minimum(proposed[..., :, None, 2:], real[..., None, :, 2:])
    shared = (last - first).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (proposed, real)]
    hit = 2 * shared > areas[0][..., :, None] + areas[1][..., None, :] - shared
    found = hit.flatten(-2).any(-1).double()
    return torch.where((areas[1] > 0).any(-1), found, torch.nan)


class DiscoveryMetric(Metric, ABC):
    """The mean of a measure over the images that can have it; NaN where none can.

    Its states are sums, which processes add up: the mean is that over all images, whoever saw them.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def measure(self, predicted: Tensor, segments: Tensor, classes: Tensor, things: Tensor) -> Tensor:
        """Return the measure of each image, NaN if it has none."""

    def update(self, predicted: Tensor, segments: Tensor, classes: Tensor, things: Tensor) -> None:
        """Add a batch of B images: ids `[B, H, W]`, and `[B, S + 1]` by segment, as in `mean_best_overlap`."""
        values = self.measure(predicted, segments, classes, things)
        exists = ~values.isnan()
        self.total += values[exists].sum()
        self.count += exists.sum()

    def compute(self) -> Tensor:
        """Return the mean, float64."""
        return self.total / self.count


class ARI(DiscoveryMetric):
    """`adjusted_rand_index`, averaged."""

    def measure(self, predicted: Tensor, segments: Tensor, classes: Tensor, things: Tensor) -> Tensor:
        """Return the measure of each image."""
        return adjusted_rand_index(predicted, segments)


class ForegroundARI(DiscoveryMetric):
    """`foreground_ari`, averaged."""

    def measure(self, predicted: Tensor, segments: Tensor, classes: Tensor, things: Tensor) -> Tensor:
        """Return the measure of each image."""
        return foreground_ari(predicted, segments, things)


class MeanBestOverlap(DiscoveryMetric):
    """`mean_best_overlap`, averaged.

    Args:
        by_class: mBO_c in place of mBO_i.
        **kwargs: Of torchmetrics.
    """

    def __init__(self, by_class: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.by_class = by_class

    def measure(self, predicted: Tensor, segments: Tensor, classes: Tensor, things: Tensor) -> Tensor:
        """Return the measure of each image."""
        return mean_best_overlap(predicted, segments, things, classes if self.by_class else None)


class CorLoc(DiscoveryMetric):
    """`correct_localization`, averaged: the share of images with an object that is found."""

    def measure(self, predicted: Tensor, segments: Tensor, classes: Tensor, things: Tensor) -> Tensor:
        """Return the measure of each image."""
        return correct_localization(predicted, segments, things)


def _check(predicted: Tensor, segments: Tensor) -> None:
    for name, ids in (("predicted", predicted), ("segments", segments)):
        if ids.dim() < 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"{name} must be integers [..., H, W]; got {ids.dtype} {list(ids.shape)}")
    if predicted.shape != segments.shape:
        raise ValueError(
            f"predicted and segments must have one shape; got {list(predicted.shape)} and {list(segments.shape)}: "
            "resize one of them"
        )
    if segments.numel() and int(segments.min()) < 0:
        raise ValueError(f"segments must be 0 (unlabelled) or above; got {int(segments.min())}")


def _number(ids: Tensor) -> int:
    """Return the number of ids from 0 on, at least one."""
    return 1 + max(0, int(ids.max())) if ids.numel() else 1


def _fit(values: Tensor, width: int) -> Tensor:
    """Cut off entries of segments that the maps do not have."""
    if values.shape[-1] < width:
        raise ValueError(
            f"classes and things must have a value for each id up to {width - 1}; got {list(values.shape)}"
        )
    return values[..., :width]


def _count(predicted: Tensor, segments: Tensor) -> Tensor:
    """Count labelled positions `[..., P + 1, S + 1]` by predicted segment, the first for none, and true one."""
    _check(predicted, segments)
    rows, columns = 1 + _number(predicted), _number(segments)
    maps = segments.shape[:-2]
    pairs = (predicted.long().clamp(min=-1) + 1) * columns + segments
    first = torch.arange(maps.numel(), device=pairs.device)[:, None, None]
    cells = (first * (rows * columns) + pairs.reshape(maps.numel(), *pairs.shape[-2:])).flatten()
    counts = cells.bincount(minlength=maps.numel() * rows * columns).view(*maps, rows, columns)
    counts[..., UNLABELLED] = 0
    return counts


def _merge(counts: Tensor, chosen: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Add up columns of one class; the first column then holds all segments that are not chosen."""
    column = torch.where(chosen, _fit(classes, chosen.shape[-1]) + 1, 0)
    merged = counts.new_zeros(*counts.shape[:-1], _number(column))
    merged.scatter_add_(-1, column[..., None, :].expand_as(counts), counts)
    return merged, torch.arange(merged.shape[-1], device=counts.device) > 0


def _rand_index(counts: Tensor) -> Tensor:
    """Return the adjusted Rand index from counts of pairs that are together in both maps, one or none."""
    number = counts.sum((-2, -1))
    both, by_row, by_column = (x.square().sum(-1) for x in (counts.flatten(-2), counts.sum(-1), counts.sum(-2)))
    only_row, only_column = by_row - both, by_column - both
    neither = (number.square() - both - only_row - only_column).double()
    together = (both - number).double()
    agreement = 2 * (together * neither - only_row.double() * only_column)
    scale = (together + only_row) * (only_row + neither) + (together + only_column) * (only_column + neither)
    index = torch.where((only_row == 0) & (only_column == 0), 1, agreement / scale)
    return torch.where(number > 0, index, torch.nan)


def _boxes(ids: Tensor, least: int) -> Tensor:
    """Return boxes `[..., N, 4]` around segments from id ``least`` on: left, top, right, bottom; else 0."""
    height, width = ids.shape[-2:]
    maps = ids.shape[:-2].numel()
    ids = ids.long() - least
    number = _number(ids)
    box = torch.where(ids < 0, number, ids).reshape(maps, height, width)  # the last one is of the rest
    box += torch.arange(maps, device=ids.device)[:, None, None] * (number + 1)
    box = box.flatten()[:, None].expand(-1, 2)
    x, y = torch.arange(width, device=ids.device), torch.arange(height, device=ids.device)
    place = torch.cartesian_prod(y, x).flip(-1).repeat(maps, 1)
    empty = place.new_zeros(maps * (number + 1), 2)
    last = empty.scatter_reduce(0, box, place + 1, "amax")
    first = (empty + max(height, width)).scatter_reduce(0, box, place, "amin")
    boxes = torch.cat([torch.where(last > 0, first, 0), last], -1)
    return boxes.view(*ids.shape[:-2], number + 1, 4)[..., :number, :]
