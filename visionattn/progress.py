"""Progress of long work, as a callback: evaluation and probing report it, the command line draws it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Progress = Callable[[int, int | None], object]
"""Called with the number of steps that are done and the number of all; None if that is unknown, as for streams."""

ShowProgress = Callable[[str, str], AbstractContextManager[Any]]
"""Called with a description and the unit of steps at the start of a phase; the context gives a `Progress`."""


@contextmanager
def no_progress(description: str, unit: str = "steps") -> Iterator[Progress]:
    """Show nothing; the default of functions that take a `ShowProgress`."""
    yield lambda done, total: None


def adding(progress: Progress, total: int) -> Callable[[int], None]:
    """Return a callback that takes the number of steps that were just done."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return add
