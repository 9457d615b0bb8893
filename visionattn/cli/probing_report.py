"""What a run of eval.py probe leaves: results in files and as a table, and images of attention."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from visionattn.cli.probing_run import Subject
from visionattn.cli.report import print_table, write_csv, write_json
from visionattn.evaluation.drawing import spread
from visionattn.probing.backbone import Layer
from visionattn.probing.heads import ProbingHead, select_tokens
from visionattn.probing.protocols import FewShotResult, HeadResult

SYMBOLS = {"temperature": "T", "lambda": "λ"}


class Report:
    """Results so far; what is given to it is in the files at once.

    Args:
        output: JSON file.
        csv: CSV file.
        heads: their order in the table.
        settings: options and provenance, for the JSON file.
    """

    def __init__(
        self, output: Path | None, csv: Path | None, heads: Sequence[str], settings: Mapping[str, Any]
    ) -> None:
        self.output, self.csv, self.heads, self.settings = output, csv, list(heads), dict(settings)
        self.models: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []

    def add_model(self, description: Mapping[str, Any]) -> None:
        """Takes up what stands in the JSON file of a model."""
        self.models.append(dict(description))

    def add(self, about: Mapping[str, Any], results: Sequence[HeadResult | FewShotResult]) -> None:
        """Takes up results and writes the files."""
        for result in results:
            values = result.to_dict()
            self.rows.append({**about, "head": values.pop("name"), **values})
        if self.output:
            write_json({"results": self._ordered(), "models": self.models, **self.settings}, self.output)
        if self.csv:
            write_csv([_flat(row) for row in self._ordered()], self.csv)

    def print(self) -> None:
        """Prints the table, what was not chosen, and how many images could not be read."""
        rows = [_displayed(row) for row in self._ordered()]
        kept = [column for column in rows[0] if any(row[column] for row in rows)]
        if len(self.models) == 1:
            kept.remove("model")
        if all(row["layers"] == rows[0]["layers"] for row in rows):
            kept.remove("layers")
        print_table([{column: row[column] for column in kept} for row in rows], title=self._title())
        if fixed := [row for row in self._ordered() if row["selected_on"] == "fixed"]:
            heads = ", ".join(dict.fromkeys(row["head"] for row in fixed))
            print(f"{heads} with one image per class: fixed, not chosen, as none can be held out")
        for model in self.models:
            if model["num_unreadable"]:
                print(f"unreadable images left out: {model['num_unreadable']}, the first: {model['unreadable'][0]}")

    def _ordered(self) -> list[dict[str, Any]]:
        """Rows of a model and its layers by the order of the heads."""
        places = [(model["model"], model["checkpoint"]) for model in self.models]

        def key(row: Mapping[str, Any]) -> Any:
            layers = [str(layer).zfill(4) for layer in row["layers"]]
            return (
                places.index((row["model"], row["checkpoint"])),
                layers,
                row.get("shots", 0),
                self.heads.index(row["head"]),
            )

        return sorted(self.rows, key=key)

    def _title(self) -> str:
        row, model = self.rows[0], self.models[0]
        data = Path(row["root"]).name if row["root"] else row["dataset"]
        name = f"{row['model']} ({row['weights']}) on " if len(self.models) == 1 else ""
        chosen = "chosen on val, as in the paper" if row["protocol"] == "paper" else "chosen on a part of train"
        chosen = "fixed" if {row["selected_on"] for row in self.rows} == {"fixed"} else chosen
        return f"{name}{data}, {model['num_train']:,} + {model['num_val']:,} images, {chosen}"


def save_attention(path: Path, head: ProbingHead, subject: Subject, group: Sequence[Layer], number: int) -> None:
    """Draws what a head attends in ``number`` images of val.

    Args:
        path: the image that is written.
        head: one with attention, on the CPU.
        subject: backbone and data.
        group: the layers that the head takes.
        number: how many images are drawn, evenly spaced.
    """
    from visionattn.viz.attention_maps import save_attention_maps

    _, val = subject.sources(group)
    chosen = torch.tensor(spread(len(val), number))
    (tokens, _), *_ = val.batches(chosen, len(chosen))
    taken = select_tokens(tokens.cpu(), head.tokens, val.num_prefix_tokens, val.num_reg_tokens)
    with torch.no_grad():
        maps = head.attention(taken)
    grid = subject.backbone.layouts[group[0]].grid
    images = subject.images["validation"]
    photographs = [images.photograph(image) for image in subject.val.indices[chosen].tolist()]
    # Of all that a head may take, the patches come last.
    save_attention_maps(photographs, maps[..., -grid[0] * grid[1] :], grid, path)


def head_label(row: Mapping[str, Any]) -> str:
    """A head's name, and options that it was given; what was chosen for it is not part of that."""
    given = row["options"] if row["optimizer"] else {}
    described = ", ".join(f"{name} {value}" for name, value in given.items())
    return f"{row['head']} ({described})" if described else row["head"]


def percent(row: Mapping[str, Any], rate: str) -> str:
    """A rate in percent, with its standard deviation where there is one."""
    deviation = row.get(f"{rate}_std")
    return f"{row[rate]:.2%}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what a cell of a CSV file cannot hold."""
    values = {key: value for key, value in row.items() if key != "draws"}
    return {**values, "layers": "+".join(map(str, row["layers"])), "options": json.dumps(row["options"])}


def _displayed(row: Mapping[str, Any]) -> dict[str, str]:
    """Cells of the table; those of columns that nothing stands in are empty."""
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
        "top-1": percent(row, "top1"),
        "top-5": percent(row, "top5"),
        "chosen": ", ".join(described),
        "params": f"{row['num_parameters']:,}",
        "s": f"{row['seconds']:,.1f}",
    }
