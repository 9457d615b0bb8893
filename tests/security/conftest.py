"""A trap that shows whether code in a file was run."""

from pathlib import Path
from typing import Any

import pytest


class Trap:
    """An object that writes a file when it is unpickled; ``sprung`` tells whether that happened.

    Args:
        mark: the file.
    """

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)

    @property
    def sprung(self) -> bool:
        return self.mark.exists()


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "sprung")
