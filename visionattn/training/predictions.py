"""Predictions: the classes of an image by probability, and their rows in a file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from visionattn.row_files import RowFile


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image.

    Attributes:
        file: path of the image; for an image in memory its number.
        classes: names of classes, the most probable one first.
        probabilities: their probabilities.
        labels: for a model of several labels, the classes whose probability reaches their threshold; otherwise None.
        error: reason why the image could not be read; it then has no classes.
    """

    file: str
    classes: list[str] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    labels: list[str] | None = None
    error: str | None = None

    def to_row(self) -> dict[str, Any]:
        """Return the values by `columns`: ``file``, ``class``, ``probability``, ``class_2``, …; without an error."""
        labels = {} if self.labels is None else {"labels": ";".join(self.labels)}
        ranked = zip(self.classes, self.probabilities, strict=True)
        pairs = {key: value for rank, pair in enumerate(ranked, 1) for key, value in zip(_pair(rank), pair, strict=True)}
        return {"file": self.file, **labels, **pairs}


def columns(topk: int = 1, multi_label: bool = False) -> dict[str, type]:
    """Return name and type of the columns of rows with ``topk`` classes."""
    labels: dict[str, type] = {"labels": str} if multi_label else {}
    pairs = {key: kind for rank in range(1, topk + 1) for key, kind in zip(_pair(rank), (str, float), strict=True)}
    return {"file": str, **labels, **pairs}


def _pair(rank: int) -> tuple[str, str]:
    return ("class", "probability") if rank == 1 else (f"class_{rank}", f"probability_{rank}")


def rank_classes(
    probabilities: Tensor, files: Sequence[str], class_names: Sequence[str], topk: int = 1
) -> list[Prediction]:
    """Return the ``topk`` most probable classes of each image, from probabilities [B, num_classes]."""
    found = probabilities.topk(min(topk, probabilities.shape[-1]), dim=-1)
    rows = zip(files, found.indices.tolist(), found.values.tolist(), strict=True)
    return [Prediction(file, [class_names[index] for index in indices], values) for file, indices, values in rows]


class PredictionWriter(Callback):
    """Write the predictions of ``predict_step`` to a file.

    Args:
        path: the file, see `RowFile`. Other processes write files with their rank in the name.
    """

    def __init__(self, path: Path) -> None:
        self.file = RowFile(path, columns())
        self._failed = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file."""
        if trainer.global_rank:
            path = self.file.path
            self.file = RowFile(path.with_stem(f"{path.stem}.rank{trainer.global_rank}"), columns())
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
