"""Results of ``eval.py probe``, in files as soon as they are known, and as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visionattn.cli.report import print_table
from visionattn.output import write_csv, write_json
from visionattn.probing.results import ProbingResult, csv_row, sort_rows, table, title


class Report:
    """Results so far.

    Args:
        output: JSON file.
        csv: CSV file.
        heads: names of the heads, in the order of the table.
        settings: options and provenance, for the JSON file.
    """

    def __init__(
        self, output: Path | None, csv: Path | None, heads: Sequence[str], settings: Mapping[str, Any]
    ) -> None:
        self.output, self.csv, self.heads, self.settings = output, csv, list(heads), dict(settings)
        self.models: list[dict[str, Any]] = []
        self.rows: list[Mapping[str, Any]] = []

    def add_model(self, description: Mapping[str, Any]) -> None:
        """Add the description of a model for the JSON file."""
        self.models.append(dict(description))

    def add(self, result: ProbingResult) -> None:
        """Add a result and write the files."""
        self.rows = sort_rows([*self.rows, result.to_dict()], self.heads)
        if self.output:
            write_json({"results": self.rows, "models": self.models, **self.settings}, self.output)
        if self.csv:
            write_csv([csv_row(row) for row in self.rows], self.csv)

    def print(self) -> None:
        """Print the table, the heads without a choice, and how many images could not be read."""
        print_table(table(self.rows), title=title(self.rows, self.models))
        if fixed := dict.fromkeys(row["head"] for row in self.rows if row["selected_on"] == "fixed"):
            print(f"{', '.join(fixed)} with one image per class: fixed, not chosen, as none can be held out")
        for model in self.models:
            if model["num_unreadable"]:
                print(f"unreadable images left out: {model['num_unreadable']}, the first: {model['unreadable'][0]}")
