"""Rows of results of several models and seeds, and their statistics."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class ResultRow:
    """Model, data and seed of a result; `checkpoint` and `weights` as in `visionattn.evaluation.source.Origin`."""

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
    """Model and data of a session in full: numbers of scenes for training and evaluation, and the first unreadable."""

    model_kwargs: dict[str, Any]
    weights_hash: str
    preprocessing: dict[str, Any]
    num_train: int
    num_val: int
    num_classes: int
    num_unreadable: int
    unreadable: list[str]
    training_seconds: float


def grouped(rows: Iterable[T], key: Callable[[T], Any]) -> list[tuple[Any, list[T]]]:
    """Return the rows of each key, in the order in which keys first occur."""
    groups: dict[Any, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.items())


def mean_and_deviation(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation of the known values; None if there are too few."""
    known = [value for value in values if value is not None]
    return (fmean(known) if known else None), (stdev(known) if len(known) > 1 else None)
