"""Results of object-binding sessions: rows for files, and their statistics over seeds."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from statistics import fmean
from typing import Any

from visionattn.probing.rows import ResultRow, SessionRow, grouped, mean_and_deviation
from visionattn.viz.binding import PANELS, DepthCurve


@dataclass(frozen=True)
class BindingRow(ResultRow):
    """Result of one probe on one layer.

    Attributes:
        layer: Number of the block, from 0.
        depth: Depth of the layer in the backbone; 1 is the last block.
        probe: Name of the probe.
        num_parameters: Number of trained parameters.

    The others are the fields of `visionattn.objects.scores.PairRates`, over all pairs, and over pairs with both patches
    on objects (`foreground_`).
    """

    layer: int
    depth: float
    probe: str
    num_parameters: int
    num_pairs: int
    share_different: float | None
    accuracy: float | None
    balanced_accuracy: float | None
    auc: float | None
    auc_error: float | None
    foreground_num_pairs: int
    foreground_share_different: float | None
    foreground_accuracy: float | None
    foreground_balanced_accuracy: float | None
    foreground_auc: float | None
    foreground_auc_error: float | None


@dataclass(frozen=True)
class InterventionRow(ResultRow):
    """Segmentation by the probes of the last layer, with tokens changed after one block.

    Attributes:
        layer: Number of the block after which tokens are changed; None for no change.
        change: ``shuffle``, ``inject`` or ``none``.
        amount: Share of shuffled patches, or strength of the injection.
        subspace: ``probe`` for the subspace of the quadratic probe, ``random`` for a random one.
        semantic_miou: Mean IoU over classes, as a fraction; None if no class occurs.
        instance_miou: Mean IoU over objects, as a fraction; None if there is no object.
    """

    layer: int | None = None
    change: str = "none"
    amount: float = 0.0
    subspace: str = "–"
    semantic_miou: float | None = None
    instance_miou: float | None = None


@dataclass(frozen=True)
class AttentionRow(ResultRow):
    """Pearson's r of the quadratic probe's scores on a layer and the attention in the next block; None if constant."""

    layer: int
    depth: float
    correlation: float | None


@dataclass
class BindingResults:
    """Results of one or several sessions.

    Attributes:
        rows: Result of each probe on each layer of each session.
        models: Model and data of each session.
        interventions: Segmentation under each intervention.
        attention: Correlation of scores with attention.
    """

    rows: list[BindingRow] = field(default_factory=list)
    models: list[SessionRow] = field(default_factory=list)
    interventions: list[InterventionRow] = field(default_factory=list)
    attention: list[AttentionRow] = field(default_factory=list)

    def extend(self, other: "BindingResults") -> None:
        """Append the results of another session."""
        for each in fields(self):
            getattr(self, each.name).extend(getattr(other, each.name))

    def to_dict(self) -> dict[str, Any]:
        """Return all results as plain values; those of `rows` are ``results``."""
        values = asdict(self)
        return {"results": values.pop("rows"), **values}

    @property
    def chance(self) -> float:
        """Accuracy of always giving the more frequent answer."""
        share = (self.rows[0].share_different if self.rows else None) or 0.0
        return max(share, 1 - share)

    def depth_curves(self) -> list[DepthCurve]:
        """Return the curves of each model and probe, for `visionattn.viz.save_depth_curves`."""
        curves = []
        for (label, probe), rows in grouped(self.rows, lambda row: (row.label, row.probe)):
            layers = [same for _, same in grouped(rows, lambda row: row.layer)]
            found = {
                rate: [mean_and_deviation(getattr(row, rate) for row in same) for same in layers] for rate in PANELS
            }
            means, deviations = ({rate: [pair[part] for pair in found[rate]] for rate in PANELS} for part in (0, 1))
            curves.append(DepthCurve(label, probe, [same[0].depth for same in layers], means, deviations))
        return curves


def best_layer(rows: Iterable[BindingRow], probe: str) -> int:
    """Return the layer of a model with a probe's best accuracy, averaged over seeds; the first of equals."""
    layers = grouped((row for row in rows if row.probe == probe), lambda row: row.layer)
    means = {layer: fmean(row.accuracy or 0.0 for row in same) for layer, same in layers}
    return max(means, key=means.__getitem__)
