"""Compare recipes of CIFAR-10 by accuracy on held-out images against time, from run folders.

    python results/recipes.py runs/*/0

results/recipes.csv gets a row for each epoch of a run, and keeps the rows of other runs. Of it are made
docs/images/recipes.png and the table in docs/cifar10.md, also where no run folder is given. All epochs of a run are
taken to last equally long. No test image is read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

from results import pages
from results.pages import Row, name_hardware, read_table
from visionattn.output import write_csv
from visionattn.viz.figure import new_figure, save_figure, style_axes

ROOT = Path(__file__).parent.parent
TABLE, PLOT = ROOT / "results" / "recipes.csv", ROOT / "docs" / "images" / "recipes.png"
PAGE = ROOT / "docs" / "cifar10.md"
NOISE = ("re_prob", "auto_augment", "mixup", "cutmix", "drop_path_rate")
"""Options that a recipe names if they are used."""
BEGIN, END = "<!-- recipes: made by results/recipes.py -->", "<!-- recipes end -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Update the table, the plot and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders of train.py")
    args = parser.parse_args(argv)
    new = [row for run in args.runs for row in epochs_of(run)]
    names = {row["run"] for row in new}
    rows = [*(row for row in read_table(TABLE) if row["run"] not in names), *new]
    write_csv(sorted(rows, key=lambda row: (row["model"], row["run"], int(row["epoch"]))), TABLE)
    curves = by_run(read_table(TABLE))
    draw(curves)
    pages.fill(PAGE, BEGIN, END, markdown(curves))
    return 0


def epochs_of(run: Path) -> list[dict[str, Any]]:
    """Return a row for each epoch of a run."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    model, data = config["model"], config["data"]
    recipe = f"{model['opt']}, rate {model['lr']:g}, batches of {data['batch_size']}"
    noise = {name: {**model, **data}.get(name) for name in NOISE}
    extras = {name: value for name, value in noise.items() if value} | (model["model_kwargs"] or {})
    recipe += "".join(f", {name} {value}" for name, value in extras.items())
    found = [row for row in read_table(run / "metrics.csv") if row["val_top1"]]
    return [
        {
            "model": summary["model"],
            "run": run.resolve().parent.name,
            "recipe": recipe,
            "epoch": epoch,
            "minutes": round(epoch * summary["train_seconds"] / 60 / len(found), 1),
            "held_out_top1": round(100 * float(row["val_top1"]), 2),
            "precision": summary["precision"],
            "hardware": name_hardware(summary),
        }
        for epoch, row in enumerate(found, start=1)
    ]


def by_run(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each run."""
    return {name: [row for row in rows if row["run"] == name] for name in dict.fromkeys(row["run"] for row in rows)}


def markdown(curves: dict[str, list[Row]]) -> str:
    """Return the table: the best run of a model first."""
    lines = ["| model | recipe | epochs | minutes | best held-out top-1 |", "|---|---|---:|---:|---:|"]
    for own in sorted(curves.values(), key=lambda own: (own[0]["model"], -best(own))):
        last = own[-1]
        cells = [
            f"`{last['model']}`",
            last["recipe"],
            last["epoch"],
            f"{float(last['minutes']):.0f}",
            f"{best(own):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def best(own: Sequence[Row]) -> float:
    """Return the best accuracy of a run."""
    return max(float(row["held_out_top1"]) for row in own)


def draw(curves: dict[str, list[Row]]) -> None:
    """Draw a plot for each model."""
    models = list(dict.fromkeys(own[0]["model"] for own in curves.values()))
    figure = new_figure(9.0, 4.0 * -(-len(models) // 2))
    plots = figure.subplots(-(-len(models) // 2), 2, squeeze=False, sharey=True).flat
    for model, axes in zip(models, plots, strict=False):  # in this order, which takes no plot without a model
        style_axes(axes, title=model, xlabel="minutes", ylabel="held-out top-1 (%)")
        for own in curves.values():
            if own[0]["model"] == model:
                minutes, top1 = ([float(row[key]) for row in own] for key in ("minutes", "held_out_top1"))
                label = fill(f"{own[0]['recipe']}, {len(own)} epochs", width=70)
                axes.plot(minutes, top1, marker=".", label=label)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    for axes in plots:
        axes.remove()
    save_figure(figure, PLOT)


if __name__ == "__main__":
    sys.exit(main())
