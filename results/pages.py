"""Tables that the scripts here keep, and their places in pages."""

import csv
from pathlib import Path
from typing import Any

from visionattn.output import write_text


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV file that earlier calls wrote; none before the first."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fill(page: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two lines of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", page)
