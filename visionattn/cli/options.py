"""Options that several commands share: the model, and the number of examples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionattn.checks import check_range
from visionattn.cli.errors import UsageError
from visionattn.evaluation.source import ModelSource
from visionattn.training import Weights


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
