"""Measure what token mixers remember: recall on maps and in sequences, regression in context, capacity of a sum.

    python results/recall.py --jobs 2

Each mixer is trained for 1,500 updates from three seeds on every problem in PROBLEMS. results/recall.csv gets a row as
soon as a run ends, and runs that it has are not repeated. The examples of the table are those of validation, on which
nothing is selected. results/recall.csv is drawn as docs/images/recall.png, and docs/recall.md gets the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from results.pages import Row, add_row, fill, mean_and_deviation, name_hardware, read_table
from results.recall_references import capacity_table, fit_regression
from visionattn import fit
from visionattn.io import slug
from visionattn.viz.figure import BLUE, GREY, new_figure, save_figure, style_axes

ROOT = Path(__file__).parent.parent
TABLE, PAGE, PLOT = (
    ROOT / "results" / "recall.csv",
    ROOT / "docs" / "recall.md",
    ROOT / "docs" / "images" / "recall.png",
)
BEGIN, END = "<!-- recall: made by results/recall.py -->", "<!-- recall ends -->"
SEEDS = (0, 1, 2)
FURTHER: dict[str, Any] = {}
"""Options of all runs beyond their config."""

Options = Mapping[str, Any]
WHOLE = 8
"""Window that sees all of a map, for mixers on windows."""
WINDOW: Options = {"mixer": "neighborhood"}
MIXERS: dict[str, Options] = {
    "window 3×3": WINDOW,
    "window 5×5": {**WINDOW, "kernel_size": 5},
    "window 3×3, dilated and not": {"mixer": ["neighborhood"] * 2, "mixer_kwargs": [{"dilation": 2}, {}]},
    "power": {"mixer": "power"},
    "core": {"mixer": "core", "mixer_kwargs": {"group_size": 4}},
    "full": {"mixer": "full"},
    "parallax": {"mixer": "parallax", "kernel_size": WHOLE},
    "blocks": {"mixer": "blocks"},
    **{f"{name} + window": {"mixer": [name, "neighborhood"]} for name in ("taylor", "elu", "routing", "ttt")},
}
"""Options of the model by the mixers' names in the table; windows are 3×3."""
CAUSAL: dict[str, Options] = {
    "window of 16": {**WINDOW, "kernel_size": 16},
    **{name: MIXERS[name] for name in ("full", "blocks")},
    **{f"{name} + window of 16": {"mixer": [name, "neighborhood"], "kernel_size": 16} for name in ("taylor", "elu")},
}
"""Causal mixers, for sequences."""
GLOBAL: dict[str, Options] = {
    **{name: {"mixer": name} for name in ("full", "taylor", "elu", "ttt")},
    **{name: {"mixer": name, "kernel_size": WHOLE} for name in ("parallax", "local_linear")},
}
"""Mixers without windows, for regression."""


@dataclass(frozen=True)
class Problem:
    """One config in several settings, for some mixers.

    Attributes:
        config: shipped config.
        metric: metric of the table.
        settings: options of the data by name.
        mixers: options of the model by name.
        title: title of its table.
    """

    config: str
    metric: str
    settings: dict[str, Options]
    mixers: dict[str, Options]
    title: str


PROBLEMS = {
    "map": Problem(
        "recall/map",
        "val_recall",
        {"6 pairs": {"pairs": 6, "num_values": 6}, "14 pairs": {"pairs": 14, "num_values": 8}},
        MIXERS,
        "Recall on maps of 8×8 cells, %; guesses: 16.7 and 12.5",
    ),
    "mqar": Problem(
        "recall/mqar",
        "val_recall",
        {
            f"{length} words, {pairs} pairs": {"length": length, "pairs": pairs}
            for length, pairs in ((64, 4), (64, 16), (128, 32))
        },
        CAUSAL,
        "Multi-query associative recall in sequences, %; guess: 0.8",
    ),
    "regression": Problem(
        "recall/regression",
        "val_r2",
        {"1 region": {"regions": 1}, "4 regions": {"regions": 4}},
        GLOBAL,
        "Regression in context: mean squared error relative to that of the best constant",
    ),
}


@dataclass(frozen=True)
class Run:
    """One training."""

    problem: str
    setting: str
    mixer: str
    seed: int
    folder: Path = field(compare=False)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Its columns in the table."""
        return self.problem, self.setting, self.mixer, str(self.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Do the runs that are missing, and update table, plot and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PROBLEMS, action="append", help="problem to run; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the trainings")
    args = parser.parse_args(argv)
    rows = read_table(TABLE)
    done = {tuple(row[key] for key in ("problem", "setting", "mixer", "seed")) for row in rows}
    problems = args.only or list(PROBLEMS)
    missing = [run for run in plan(problems, args.runs) if run.key not in done]
    failed = 0
    # Processes of their own, as a run sets threads and random states.
    threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    with ProcessPoolExecutor(args.jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        futures = {pool.submit(train, run): run for run in missing}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                name = ", ".join(futures[future].key)
                try:
                    row = future.result()
                except Exception as error:  # the other runs go on
                    failed += 1
                    print(f"error: {name}: {error}", file=sys.stderr)
                    continue
                rows = add_row(TABLE, row, place)
                print(f"{number}/{len(missing)} {name}: {row['score']:.4f}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt also ends the runs that wait
    if maps := [row for row in rows if row["problem"] == "map"]:
        draw(maps)
    fill(PAGE, BEGIN, END, markdown(rows))
    return int(failed > 0)


def plan(problems: Sequence[str], folder: Path) -> Iterator[Run]:
    """Yield all runs, seed by seed."""
    for seed in SEEDS:
        for name in problems:
            for setting in PROBLEMS[name].settings:
                for mixer in PROBLEMS[name].mixers:
                    yield Run(name, setting, mixer, seed, folder)


def place(row: Row) -> tuple[int, ...]:
    """Return the place of a row in the table."""
    problem = PROBLEMS[row["problem"]]
    orders = (list(PROBLEMS), list(problem.settings), list(problem.mixers))
    names = (row["problem"], row["setting"], row["mixer"])
    return (*(order.index(name) for order, name in zip(orders, names, strict=True)), int(row["seed"]))


def train(run: Run) -> dict[str, Any]:
    """Return the row of a training."""
    problem = PROBLEMS[run.problem]
    options = {f"model.{name}": value for name, value in problem.mixers[run.mixer].items()}
    options |= {f"data.{name}": value for name, value in problem.settings[run.setting].items()}
    name = slug("-".join(run.key))
    about = {
        "seed_everything": run.seed,
        "runs": run.folder,
        "run_name": f"recall-{name}",
        "trainer.accelerator": "cpu",
    }
    result = fit(problem.config, options, FURTHER, about, quiet=True)
    summary = json.loads((result.folder / "summary.json").read_text(encoding="utf-8"))
    return {
        "problem": run.problem,
        "setting": run.setting,
        "mixer": run.mixer,
        "seed": run.seed,
        "score": round(result.metrics[problem.metric], 5),
        "steps": result.steps,
        "parameters": summary["parameters"],
        "minutes": round(result.seconds / 60, 1),
        "hardware": name_hardware(summary),
        "torch": summary["versions"]["torch"],
        "command": summary["command"],
    }


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables of the page."""
    parts = []
    for name, problem in PROBLEMS.items():
        own = [row for row in rows if row["problem"] == name]
        parts.append(f"### {problem.title}\n\n{score_table(problem, own)}")
        if name == "map" and own:
            parts.append("![Recall of each mixer with 6 and with 14 pairs](images/recall.png)")
    if rows:
        hardware = sorted({f"{row['hardware']}, torch {row['torch']}" for row in rows})
        steps = dict.fromkeys(f"{int(row['steps']):,}" for row in rows)
        longest = max(float(row["minutes"]) for row in rows)
        parts.append(
            f"Each run has {', '.join(steps)} updates; the longest took {longest:.1f} minutes. "
            f"Hardware: {'; '.join(hardware)}. Values are means over seeds ± their deviation."
        )
    parts.append(f"### Capacity of a sum of products\n\n{capacity_table()}")
    return "\n\n".join(parts)


def score_table(problem: Problem, rows: Sequence[Row]) -> str:
    """Return the table of a problem: a row for each mixer, and for regression those of fits without training."""
    settings = problem.settings
    digits = 3 if problem.metric == "val_r2" else 1
    lines = [f"| | parameters | {' | '.join(settings)} |", "|---|---:|" + "---:|" * len(settings)]
    for mixer in problem.mixers:
        own = [row for row in rows if row["mixer"] == mixer]
        scores = {setting: [shown(problem, row) for row in own if row["setting"] == setting] for setting in settings}
        cells = [mean_and_deviation(values, digits) for values in scores.values()]
        parameters = f"{int(own[0]['parameters']):,}" if own else "–"
        lines.append(f"| {mixer} | {parameters} | {' | '.join(cells)} |")
    if problem.metric == "val_r2":
        fits = [fit_regression(options) for options in settings.values()]
        for name in fits[0]:
            lines.append(f"| {name}, fitted | – | {' | '.join(f'{errors[name]:.3f}' for errors in fits)} |")
    return "\n".join(lines)


def shown(problem: Problem, row: Row) -> float:
    """Return the score of a row as the table shows it."""
    score = float(row["score"])
    return 1 - score if problem.metric == "val_r2" else 100 * score


def draw(rows: Sequence[Row]) -> None:
    """Draw recall on maps: a panel for each number of pairs, with a line at the guess."""
    problem = PROBLEMS["map"]
    figure = new_figure(8.0, 4.0)
    plots = figure.subplots(1, len(problem.settings), sharey=True)
    for axes, (setting, options) in zip(plots, problem.settings.items(), strict=True):
        style_axes(axes, xlabel="recall", title=setting, xlim=(0, 1.03))
        axes.axvline(1 / options["num_values"], color=GREY, linestyle="--")
        axes.set_yticks(range(len(problem.mixers)), problem.mixers)
        axes.set_ylim(len(problem.mixers) - 0.5, -0.5)
        for row in rows:
            if row["setting"] == setting:
                axes.plot(float(row["score"]), list(problem.mixers).index(row["mixer"]), "o", color=BLUE, alpha=0.6)
    save_figure(figure, PLOT)


if __name__ == "__main__":
    sys.exit(main())
