"""Results of segmentation probes: a row for each head, with rows of its classes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from visionattn.metrics.semantic import SemanticScores
from visionattn.probing.frozen import Layer
from visionattn.probing.rows import ResultRow, SessionRow
from visionattn.probing.segmentation.head import LinearSegmenter


@dataclass(frozen=True)
class SegmentationRow(ResultRow):
    """Result of a head; rates are fractions.

    Attributes:
        layers: Layers whose features the head takes.
        miou: Mean IoU of the classes that occur in val; None if none occurs.
        pixel_accuracy: Share of the labelled pixels of val that are right.
        mean_accuracy: Mean over the classes of val of the share of their pixels that are right.
        num_present: Number of classes that occur in val.
        held_out_miou: Mean IoU of the chosen rate and epoch at drawn pixels of the held-out part of train.
        lr: Chosen peak learning rate.
        epoch: Chosen epoch, counted from 1.
        num_parameters: Number of trained parameters.
        seconds: Wall time of the training, of all learning rates until this one stopped.
    """

    layers: list[Layer]
    miou: float | None
    pixel_accuracy: float | None
    mean_accuracy: float | None
    num_present: int
    held_out_miou: float
    lr: float
    epoch: int
    num_parameters: int
    seconds: float


@dataclass(frozen=True)
class ClassRow(ResultRow):
    """Result of a head on a class that occurs in val.

    Attributes:
        layers: Layers whose features the head takes.
        number: Number of the class.
        name: Name of the class.
        pixels: Number of its pixels in val.
        iou: Its IoU, as a fraction.
        accuracy: Share of its pixels that are right.
    """

    layers: list[Layer]
    number: int
    name: str
    pixels: int
    iou: float
    accuracy: float


@dataclass(frozen=True)
class SegmentationResult:
    """Result of a head.

    Attributes:
        row: Its rates.
        classes: Its rates on each class that occurs in val.
        head: The trained head, in evaluation mode, on the device of the session.
    """

    row: SegmentationRow
    classes: list[ClassRow]
    head: LinearSegmenter = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the row that ``probe-seg --output`` writes."""
        return self.row.to_dict()


@dataclass
class SegmentationResults:
    """Results of one or several sessions.

    Attributes:
        rows: Result of each head.
        classes: Result of each head on each class.
        models: Model and data of each session.
    """

    rows: list[SegmentationRow] = field(default_factory=list)
    classes: list[ClassRow] = field(default_factory=list)
    models: list[SessionRow] = field(default_factory=list)

    def add(self, result: SegmentationResult) -> None:
        """Append the result of a head."""
        self.rows.append(result.row)
        self.classes += result.classes

    def to_dict(self) -> dict[str, Any]:
        """Return all results as plain values; those of `rows` are ``results``."""
        values = asdict(self)
        return {"results": values.pop("rows"), **values}


def class_rows(scores: SemanticScores, names: Sequence[str], **about: Any) -> list[ClassRow]:
    """Return the rows of the classes that occur, by their numbers; `about` has the other fields."""
    rates = zip(scores.pixels.tolist(), scores.iou.tolist(), scores.accuracy.tolist(), strict=True)
    return [
        ClassRow(**about, number=number, name=names[number], pixels=int(pixels), iou=iou, accuracy=accuracy)
        for number, (pixels, iou, accuracy) in enumerate(rates)
        if pixels
    ]
