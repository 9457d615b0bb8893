"""Options that hold several words or numbers, separated by commas."""

from typing import Any

from visionattn.cli.errors import UsageError


def words(option: str, text: str) -> list[str]:
    """Words between commas, each once.

    Raises:
        UsageError: there are none.
    """
    found = list(dict.fromkeys(filter(None, (word.strip() for word in text.split(",")))))
    if not found:
        raise UsageError(f"--{option} {text!r} names nothing")
    return found


def numbers(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """Numbers between commas.

    Raises:
        UsageError: something else.
    """
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--{option} must be numbers, separated by commas, got {text!r}") from error
