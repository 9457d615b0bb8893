"""Results of object-binding sessions: rows for files, and their statistics over seeds."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import fmean, stdev
from typing import Any, NamedTuple, TypeVar

from visionattn.viz.binding import PANELS, DepthCurve

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class ResultRow:
    """Model, data and seed of a result.

    Attributes:
        model: Name of the architecture.
        checkpoint: File of the weights, if there is one.
        weights: Kind of the weights, see `visionattn.evaluation.source.Origin`.
        dataset: Name of the data set.
        root: Folder of the data set, if there is one.
        seed: Seed of the session.
    """

    model: str
    checkpoint: str | None
    weights: str
    dataset: str
    root: str | None
    seed: int

    @property
    def label(self) -> str:
        """The model and the origin of its weights."""
        return f"{self.model} ({self.checkpoint or self.weights})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class SessionRow(ResultRow):
    """Model and data of a session, in full.

    Attributes:
        model_kwargs: Arguments of the model.
        weights_hash: Hash of the weights.
        preprocessing: Preprocessing of the scenes.
        num_train: Number of scenes for training.
        num_val: Number of scenes for evaluation.
        num_classes: Number of classes of segments.
        num_unreadable: Number of scenes that could not be read.
        unreadable: The first of these, with the reason.
        training_seconds: Time of the training.
    """

    model_kwargs: dict[str, Any]
    weights_hash: str
    preprocessing: dict[str, Any]
    num_train: int
    num_val: int
    num_classes: int
    num_unreadable: int
    unreadable: list[str]
    training_seconds: float


@dataclass(frozen=True)
class BindingRow(ResultRow):
    """Rates of one probe on one layer, as fractions; see `visionattn.objects.scores.PairRates`.

    Attributes:
        layer: Number of the block, from 0.
        depth: Depth of the layer in the backbone; 1 is the last block.
        probe: Name of the probe.
        num_parameters: Number of trained parameters.
        num_pairs: Number of pairs of patches. The fields below, up to `auc_error`, are rates over these pairs.
        foreground_num_pairs: Number of pairs with both patches on objects. The fields below are rates over these pairs.
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

    layer: int | None
    change: str
    amount: float
    subspace: str
    semantic_miou: float | None
    instance_miou: float | None


@dataclass(frozen=True)
class AttentionRow(ResultRow):
    """Correlation of the quadratic probe's scores on a layer with the attention in the next block.

    Attributes:
        layer: Number of the block, from 0.
        depth: Depth of the layer in the backbone; 1 is the last block.
        correlation: Pearson's r; None if scores or attention are constant.
    """

    layer: int
    depth: float
    correlation: float | None


class Statistic(NamedTuple):
    """Mean and sample standard deviation over seeds; None if there are too few values.

    Attributes:
        mean: Mean of the known values.
        deviation: Standard deviation of two or more known values.
    """

    mean: float | None
    deviation: float | None


@dataclass
class BindingResults:
    """Results of one or several sessions.

    Attributes:
        rows: Rates of each probe on each layer of each session.
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
        """Return all results as plain values, the rows under ``results``."""
        return {
            "results": [row.to_dict() for row in self.rows],
            "models": [row.to_dict() for row in self.models],
            "interventions": [row.to_dict() for row in self.interventions],
            "attention": [row.to_dict() for row in self.attention],
        }

    @property
    def chance(self) -> float:
        """Accuracy of always giving the more frequent answer."""
        share = (self.rows[0].share_different if self.rows else None) or 0.0
        return max(share, 1 - share)

    def depth_curves(self) -> list[DepthCurve]:
        """Return the curves of each model and probe, for `visionattn.viz.binding.save_depth_curves`."""
        curves = []
        for (label, probe), rows in grouped(self.rows, lambda row: (row.label, row.probe)):
            layers = grouped(rows, lambda row: row.layer)
            found = {rate: [statistic(getattr(row, rate) for row in same) for _, same in layers] for rate in PANELS}
            means = {rate: [each.mean for each in found[rate]] for rate in PANELS}
            deviations = {rate: [each.deviation for each in found[rate]] for rate in PANELS}
            curves.append(DepthCurve(label, probe, [same[0].depth for _, same in layers], means, deviations))
        return curves


def best_layer(rows: Iterable[BindingRow], probe: str) -> int:
    """Return the layer on which a probe has the best accuracy, averaged over seeds; the first of equals.

    Args:
        rows: Rows of one model.
        probe: Name of the probe.
    """
    layers = grouped((row for row in rows if row.probe == probe), lambda row: row.layer)
    means = {layer: fmean(row.accuracy or 0.0 for row in same) for layer, same in layers}
    return max(means, key=means.__getitem__)


def grouped(rows: Iterable[T], key: Callable[[T], Key]) -> list[tuple[Key, list[T]]]:
    """Return the rows of each key, in the order in which keys first occur."""
    groups: dict[Key, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.items())


def statistic(values: Iterable[float | None]) -> Statistic:
    """Return mean and standard deviation of the known values."""
    known: Sequence[float] = [value for value in values if value is not None]
    return Statistic(fmean(known) if known else None, stdev(known) if len(known) > 1 else None)
