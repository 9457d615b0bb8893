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
    """Checks that a number is within bounds; None stands for a default and passes, NaN does not.

    Args:
        option: its name, without dashes.
        value: what was given.
        low: the smallest that will do.
        high: the largest.
        above: ``low`` itself will not do.
        error: what is raised.

    Raises:
        ValueError: it does not; the message names option, bounds and value.
    """
    if value is None or (low < value <= high if above else low <= value <= high):
        return
    bounds = f"{'greater than' if above else 'at least'} {low}" + ("" if high == math.inf else f" and at most {high}")
    raise error(f"--{option} must be {bounds}, got {value}")


def check_choice(
    option: str, value: str | None, choices: Collection[str], *, error: type[Exception] = ValueError
) -> None:
    """Checks that a word is one of ``choices``; None stands for a default and passes.

    Args:
        option: its name, without dashes.
        value: what was given.
        choices: what will do.
        error: what is raised.

    Raises:
        ValueError: it is none of them; the message names option, choices and value.
    """
    if value is not None and value not in choices:
        raise error(f"--{option} must be one of {', '.join(choices)}, got {value!r}")


def reason(error: BaseException) -> str:
    """Return what an error says, or its kind if it says nothing, as bare assertions of other packages do."""
    return str(error) or type(error).__name__
