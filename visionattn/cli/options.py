"""Options that several commands share: the model, lists of words and numbers, and numbers of examples."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visionattn.checks import check_range
from visionattn.cli.errors import UsageError
from visionattn.data import DataError
from visionattn.evaluation.source import ModelSource
from visionattn.tasks.checkpoint import Weights


def model_source(
    checkpoint: Path | None,
    model: str | None,
    pretrained: bool,
    model_kwargs: Mapping[str, Any] | None,
    weights: Weights,
) -> ModelSource:
    """Return the source that options name.

    Raises:
        UsageError: they contradict each other, or name none.
    """
    try:
        return ModelSource(checkpoint, model, pretrained, model_kwargs, weights)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_number(num_examples: int) -> None:
    """Check how many images are to be drawn.

    Raises:
        UsageError: there would be none.
    """
    check_range("num_examples", num_examples, 1, error=UsageError)


def words(option: str, text: str) -> list[str]:
    """Return the words between commas, each once.

    Raises:
        UsageError: there are none.
    """
    found = list(dict.fromkeys(filter(None, (word.strip() for word in text.split(",")))))
    if not found:
        raise UsageError(f"--{option} {text!r} names nothing")
    return found


def numbers(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """Return the numbers between commas.

    Raises:
        UsageError: something else is between them.
    """
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--{option} must be numbers, separated by commas, got {text!r}") from error


@contextmanager
def renamed(**names: str) -> Iterator[None]:
    """Let errors of a data module name a command's own option in place of the module's: ``val_split="split"``."""
    try:
        yield
    except DataError as error:
        message = str(error)
        for name, own in names.items():
            message = message.replace(f"--data.{name}", f"--data.{own}")
        raise DataError(message) from error
