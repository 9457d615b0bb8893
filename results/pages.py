"""Tables that the scripts here keep, and their places in pages."""

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from visionattn.output import write_csv, write_text

Row = Mapping[str, Any]


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV file that earlier calls wrote; none before the first."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_row(path: Path, row: Row, place: Callable[[Row], Any]) -> list[dict[str, Any]]:
    """Write a row to its place in a CSV file, where it replaces an earlier row of the same place; return all rows.

    The file is read again: another process may have written meanwhile.
    """
    rows = [held for held in read_table(path) if place(held) != place(row)]
    write_csv(sorted([*rows, row], key=place), path)
    return read_table(path)


def fill(page: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two lines of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", page)


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Return the mean and the standard deviation in words; "–" without values."""
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def name_hardware(about: Mapping[str, Any]) -> str:
    """Return the hardware of a provenance, or of a summary of a run, in words."""
    hardware = about["hardware"]
    return f"{hardware['name']}, threads: {hardware.get('threads', '')}"
