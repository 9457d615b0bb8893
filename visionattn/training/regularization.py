"""Models with rates of dropout and stochastic depth."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from visionattn.tasks.checkpoint import create_classifier


def create_regularized(name: str, rates: Mapping[str, float | None], **options: Any) -> nn.Module:
    """Build a model with rates of dropout and stochastic depth.

    Args:
        name: of the model.
        rates: by argument. None leaves it to the model, and so does 0 where the model has no such argument.
        **options: further arguments, as :func:`~visionattn.tasks.checkpoint.create_classifier` takes them.

    Raises:
        ValueError: as there.
    """
    given = {key: rate for key, rate in rates.items() if rate is not None}
    try:
        return create_classifier(name, **{**options, **given})
    except ValueError as error:
        unknown = next((key for key, rate in given.items() if not rate and f"no argument {key!r}" in str(error)), None)
        if unknown is None:
            raise
    return create_regularized(name, {**given, unknown: None}, **options)
