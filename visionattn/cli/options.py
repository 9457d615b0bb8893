"""Options that hold several words or numbers, separated by commas, and names of options in errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from visionattn.cli.errors import UsageError
from visionattn.data import DataError


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
