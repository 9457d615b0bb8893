"""Pruning curves: outcomes of a network without the first k heads of an order, for growing k."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.analysis.head_images import HeadBatch
from visionattn.analysis.heads import Head, HeadLayer, HeadValues, head_name
from visionattn.analysis.patching import Ablation, Unfinished, measure_ablations
from visionattn.evaluation.device import Precision
from visionattn.progress import ShowProgress, no_progress


@dataclass(frozen=True)
class PruningCurve:
    """Outcomes of a network without the first heads of an order.

    Attributes:
        order: The heads, in the order in which they are cut.
        points: A row per point: ``num_heads`` that are cut, ``loss`` and ``top1`` of the network without them, and
            their effects as in `Effects.values`.
        area: Area under ``loss`` and ``top1``, or under ``d_features``, over the share of heads that are cut.
    """

    order: list[Head]
    points: list[dict[str, Any]]
    area: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; heads by their names."""
        return {"order": [head_name(head) for head in self.order], "points": self.points, "area": self.area}


def order_heads(values: HeadValues, score: str, descending: bool = True) -> list[Head]:
    """Return the heads in the order of a figure; heads without it come last.

    Heads of equal figures, and heads without one, keep the order of the network.

    Args:
        values: Figures of heads.
        score: Name of the figure, such as ``d_loss``.
        descending: Begin with the largest figure.
    """

    def key(head: Head) -> tuple[bool, float, Head]:
        value = values[head].get(score)
        return value is None, 0.0 if value is None else -value if descending else value, head

    return sorted(values, key=key)


def random_orders(heads: Sequence[Head], count: int = 5, seed: int = 0) -> list[list[Head]]:
    """Return random orders of heads, to compare others with."""
    generator = torch.Generator().manual_seed(seed)
    return [[heads[place] for place in torch.randperm(len(heads), generator=generator).tolist()] for _ in range(count)]


def measure_curves(
    network: nn.Module,
    layers: Sequence[HeadLayer],
    orders: Mapping[str, Sequence[Head]],
    batches: Iterable[HeadBatch],
    *,
    points: int = 11,
    ablation: Ablation = "mean",
    means: Sequence[Tensor] | None = None,
    unfinished: Unfinished | None = None,
    precision: Precision = "32-true",
    progress: ShowProgress = no_progress,
) -> dict[str, PruningCurve]:
    """Ablate more and more heads, in several orders.

    All curves are measured together, so that images are read once. A set of heads that several curves share, such as
    none and all, is measured once.

    Args:
        network: The network, in evaluation mode.
        layers: Its layers, see `head_layers`.
        orders: Orders of heads by name.
        batches: The images.
        points: Points per curve, evenly spaced from no head to all of an order; at most one per head.
        ablation: What stands in the place of a head's outputs.
        means: Means of heads, see `head_means`, for the ablation ``mean``.
        unfinished: File from which an interrupted measurement resumes.
        precision: Precision of the network.
        progress: Shows the number of passes.

    Raises:
        ValueError: `points` is below 2, there are no orders, or one has no heads.
        UserError: There are no images, or an output is not finite.
        OSError: The file cannot be written.
    """
    if points < 2 or not orders or not all(orders.values()):
        raise ValueError(f"pruning curves need an order of at least 1 head, and 2 points; got {points} points")
    counts = {name: _spread(len(order), points) for name, order in orders.items()}
    sets = {name: [frozenset(order[:count]) for count in counts[name]] for name, order in orders.items()}
    versions = {heads: version for version, heads in enumerate(dict.fromkeys(chain(*sets.values())))}
    outcomes = measure_ablations(
        *(network, layers, list(versions), batches),
        ablation=ablation,
        means=means,
        unfinished=unfinished,
        precision=precision,
        progress=progress,
    )
    curves = {}
    for name, order in orders.items():
        rows: list[dict[str, Any]] = [
            {"num_heads": len(heads), **outcomes.means(versions[heads]), **outcomes.effects(versions[heads])}
            for heads in sets[name]
        ]
        areas = outcomes.means(0) or {"d_features": 0.0}
        area = {figure: _area([(row["num_heads"] / len(order), row[figure]) for row in rows]) for figure in areas}
        curves[name] = PruningCurve(list(order), rows, area)
    return curves


def _spread(count: int, points: int) -> list[int]:
    """Return `points` integers from 0 to `count`, evenly spaced, each once."""
    return sorted({round(count * place / (points - 1)) for place in range(points)})


def _area(points: list[tuple[float, float]]) -> float:
    """Return the area under a line through points (x, y)."""
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
