"""Predictions: the classes of an image by probability, and their rows in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from visionattn.row_files import RowFile

THRESHOLD = 0.5
"""Smallest probability of a label, for models of several labels that have no thresholds of their own."""


class Prediction(NamedTuple):
    """The most probable classes of an image.

    Attributes:
        file: path of the image; for an image in memory its number.
        classes: names of classes, the most probable one first.
        probabilities: their probabilities.
        labels: for a model of several labels, the classes whose probability reaches their threshold; otherwise None.
        error: reason why the image could not be read; it then has no classes.
    """

    file: str
    classes: list[str]
    probabilities: list[float]
    labels: list[str] | None = None
    error: str | None = None

    def to_row(self) -> dict[str, Any]:
        """Return the values by `columns`: ``file``, ``class``, ``probability``, ``class_2``, …; without an error."""
        row: dict[str, Any] = {"file": self.file}
        if self.labels is not None:
            row["labels"] = ";".join(self.labels)
        for rank, pair in enumerate(zip(self.classes, self.probabilities, strict=True), 1):
            row.update(zip(_pair(rank), pair, strict=True))
        return row


def columns(topk: int = 1, multi_label: bool = False) -> dict[str, type]:
    """Return name and type of the columns of rows with ``topk`` classes."""
    found: dict[str, type] = {"file": str} | ({"labels": str} if multi_label else {})
    for rank in range(1, topk + 1):
        found.update(zip(_pair(rank), (str, float), strict=True))
    return found


def _pair(rank: int) -> tuple[str, str]:
    return ("class", "probability") if rank == 1 else (f"class_{rank}", f"probability_{rank}")


def make_predictions(
    logits: Tensor,
    files: Sequence[str],
    class_names: Sequence[str],
    topk: int = 1,
    thresholds: Tensor | None = None,
) -> list[Prediction]:
    """Return predictions from logits [B, num_classes] of images.

    For models of several labels ``thresholds`` [num_classes] has the smallest probability of each class.
    """
    shares = logits.softmax(-1) if thresholds is None else logits.sigmoid()
    found = shares.topk(min(topk, shares.shape[-1]), dim=-1)
    rows = zip(files, found.indices.tolist(), found.values.tolist(), strict=True)
    predictions = [Prediction(file, [class_names[index] for index in best], values) for file, best, values in rows]
    if thresholds is None:
        return predictions
    chosen = shares >= thresholds.to(shares.device)
    return [
        prediction._replace(labels=[name for name, given in zip(class_names, row, strict=True) if given])
        for prediction, row in zip(predictions, chosen.tolist(), strict=True)
    ]


class PredictionWriter(Callback):
    """Write the predictions of ``predict_step`` to a file.

    Args:
        path: the file, see `RowFile`. Other processes write files with their rank in the name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = RowFile(path, {})
        self._failed = False

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Open the file."""
        rank = trainer.global_rank
        path = self.path.with_stem(f"{self.path.stem}.rank{rank}") if rank else self.path
        self.file = RowFile(path, columns(multi_label=pl_module.spec.multi_label))
        self.file.open()

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Add a batch."""
        self.file.write(prediction.to_row() for prediction in outputs)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the file under the name of a part."""
        self._failed = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the file."""
        self.file.close(whole=not self._failed)
