"""Tables of results."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from visionattn.evaluation.loop import NAMED_UNREADABLE
from visionattn.probing.rows import mean_and_deviation


def print_table(rows: Sequence[Mapping[str, str]], title: str | None = None) -> None:
    """Print ``rows``, whose keys are the columns; the first column is aligned to the left, the others to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console = Console()
    if not console.is_terminal:
        # A file or pipe has no width; rich would assume 80 columns and break words.
        console = Console(width=160)
    console.print(table, soft_wrap=not console.is_terminal)


def mean_cell(values: Iterable[float | None], scale: float = 100, digits: int = 2) -> str:
    """Return the mean of known values and, of several, the standard deviation; as percentages by default."""
    mean, deviation = mean_and_deviation(values)
    spread = "" if deviation is None else f" ± {scale * deviation:.{digits}f}"
    return "–" if mean is None else f"{scale * mean:.{digits}f}{spread}"


def print_unreadable(result: Any, noun: str) -> None:
    """Print the number of images that an evaluation left out, if there are any, and the first of them."""
    if result.num_unreadable:
        print(f"unreadable {noun} left out: {result.num_unreadable}, the first: {result.unreadable[0]}")


def print_left_out(lines: Sequence[str], noun: str = "images") -> None:
    """Print the images that could not be read, of many the first ones."""
    if lines:
        print(f"unreadable {noun} left out: {len(lines):,}")
    for line in lines[:NAMED_UNREADABLE]:
        print(f"  {line}")
    if len(lines) > NAMED_UNREADABLE:
        print("  …")
