"""Results of a probing session: a row for each head, and how rows are ordered and described."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionattn.probing.frozen import Layer
from visionattn.probing.heads import ProbingHead
from visionattn.probing.protocols import FewShotResult, HeadResult

SYMBOLS = {"temperature": "T", "lambda": "λ"}


@dataclass(frozen=True)
class ProbingResult:
    """Accuracy of a head on layers of a backbone; rates are fractions.

    Attributes:
        about: Backbone, data and training, as plain values.
        found: The result of the head, or of several few-shot draws.
    """

    about: Mapping[str, Any]
    found: HeadResult | FewShotResult

    @property
    def name(self) -> str:
        """The head's name."""
        return self.found.name

    @property
    def layers(self) -> list[Layer]:
        """The layers whose features the head takes."""
        return list(self.about["layers"])

    @property
    def top1(self) -> float:
        """Share of val whose class comes first; of several draws the mean."""
        return self.found.top1

    @property
    def top5(self) -> float:
        """Share of val whose class is among the first five; of several draws the mean."""
        return self.found.top5

    @property
    def head(self) -> ProbingHead | None:
        """The trained head, in evaluation mode on the CPU; None for k-NN and for few-shot draws."""
        return self.found.head if isinstance(self.found, HeadResult) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the row that ``eval.py probe --output`` writes."""
        values = self.found.to_dict()
        return {**self.about, "head": values.pop("name"), **values}


def sort_rows(rows: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return rows by model, in the order of their first rows, and for each model by `row_key`."""
    models = list(dict.fromkeys((row["model"], row["checkpoint"]) for row in rows))
    return sorted(rows, key=lambda row: (models.index((row["model"], row["checkpoint"])), *row_key(row, heads)))


def row_key(row: Mapping[str, Any], heads: Sequence[str]) -> tuple[Any, ...]:
    """Return a key that sorts rows of a model by layers, shots, and head in the given order."""
    return [str(layer).zfill(4) for layer in row["layers"]], row.get("shots", 0), heads.index(row["head"])


def csv_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose values fit in the cells of a CSV file."""
    values = {key: value for key, value in row.items() if key != "draws"}
    return {**values, "layers": "+".join(map(str, row["layers"])), "options": json.dumps(row["options"])}


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the cells of a table without columns that are empty, or the same for all rows and not worth a column."""
    cells = [_cells(row) for row in rows]
    left_out = {column for column in cells[0] if not any(row[column] for row in cells)}
    left_out |= {column for column in ("model", "layers") if len({row[column] for row in cells}) == 1}
    return [{column: text for column, text in row.items() if column not in left_out} for row in cells]


def title(rows: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> str:
    """Return the heading of a table: backbone (of several none), data, and where choices were made."""
    row, model = rows[0], models[0]
    name = f"{row['model']} ({row['weights']}) on " if len(models) == 1 else ""
    chosen = "chosen on val, as in the paper" if row["protocol"] == "paper" else "chosen on a part of train"
    chosen = "fixed" if {row["selected_on"] for row in rows} == {"fixed"} else chosen
    return f"{name}{data_name(row)}, {model['num_train']:,} + {model['num_val']:,} images, {chosen}"


def data_name(row: Mapping[str, Any]) -> str:
    """Return the name of a folder of images, or of another data set."""
    return Path(row["root"]).name if row["dataset"] == "folder" and row["root"] else row["dataset"]


def head_label(row: Mapping[str, Any]) -> str:
    """Return a head's name with the options that it was given, without values that were chosen for it."""
    given = row["options"] if row["optimizer"] else {}
    described = ", ".join(f"{name} {value}" for name, value in given.items())
    return f"{row['head']} ({described})" if described else row["head"]


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    held_out = row.get("held_out_accuracy")
    chosen = {"lr": row.get("lr"), "epoch": row.get("epoch")} if row["optimizer"] else row["options"]
    described = [
        f"{SYMBOLS.get(name, name)} {value:.3g}" for name, value in chosen.items() if isinstance(value, float | int)
    ]
    return {
        "head": head_label(row),
        "model": row["model"] if row["checkpoint"] is None else f"{row['model']}, {row['checkpoint']}",
        "layers": "+".join(map(str, row["layers"])),
        "shots": str(row.get("shots", "")),
        "held-out": "" if held_out is None else f"{held_out:.2%}",
        "top-1": _percent(row, "top1"),
        "top-5": _percent(row, "top5"),
        "chosen": ", ".join(described),
        "params": f"{row['num_parameters']:,}",
        "s": f"{row['seconds']:,.1f}",
    }


def _percent(row: Mapping[str, Any], rate: str) -> str:
    """Return a rate in percent, with its standard deviation if there is one."""
    deviation = row.get(f"{rate}_std")
    return f"{row[rate]:.2%}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
