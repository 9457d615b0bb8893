"""Checks of options, in the words that users read."""

import math
from collections.abc import Collection


def check_range(
    option: str,
    value: float | None,
    low: float,
    high: float = math.inf,
    *,
    above: bool = False,
    error: type[Exception] = ValueError,
) -> None:
    """Check that a number is within bounds; None stands for a default and passes, NaN does not.

    Args:
        option: name of the option, without dashes.
        value: given value.
        low: smallest valid value.
        high: largest valid value.
        above: whether ``low`` itself is invalid.
        error: type of the error.

    Raises:
        ValueError: it is not; the message names option, bounds and value.
    """
    if value is None or (low < value <= high if above else low <= value <= high):
        return
    bounds = f"{'greater than' if above else 'at least'} {low}" + ("" if high == math.inf else f" and at most {high}")
    raise error(f"--{option} must be {bounds}, got {value}")


def check_choice(
    option: str, value: str | None, choices: Collection[str], *, error: type[Exception] = ValueError
) -> None:
    """Check that a word is one of ``choices``; None stands for a default and passes.

    Raises:
        ValueError: it is not; the message names option, choices and value.
    """
    if value is not None and value not in choices:
        raise error(f"--{option} must be one of {', '.join(choices)}, got {value!r}")


def reason(error: BaseException) -> str:
    """Return the message of an error, or its type if it has none, like bare assertions of other packages."""
    return str(error) or type(error).__name__
