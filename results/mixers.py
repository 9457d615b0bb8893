"""Compare token mixers on CIFAR-10, in one small model and by one recipe, configs/mixers/*.yaml.

    python results/mixers.py --root data/cifar10 --seeds 0,1,2

The weights after the last epoch are shown the test images. results/mixers.csv gets a row for each run, and runs that
it has are not repeated; a run that was stopped goes on from its last checkpoint. docs/mixers.md gets the table. Speed
comes from results/mixers_speed.json, which this command makes on an idle machine:

    visionattn throughput --models 'iso_nano,iso_nano_*' --output results/mixers_speed.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results.pages import Row, add_row, fill, mean_and_deviation, name_hardware, read_table
from results.trainings import train_and_test

ROOT = Path(__file__).parent.parent
TABLE, SPEEDS, PAGE = (
    ROOT / "results" / "mixers.csv",
    ROOT / "results" / "mixers_speed.json",
    ROOT / "docs" / "mixers.md",
)
CONFIGS = ROOT / "configs" / "mixers"
BEGIN, END = "<!-- mixers: made by results/mixers.py -->", "<!-- mixers end -->"
MIXERS = {
    "neighborhood": "5×5 neighborhood",
    "full": "full",
    "core": "core",
    "power": "power",
    "parallax": "parallax",
    "taylor": "taylor, neighborhood",
    "routing": "routing, neighborhood",
    "ttt": "ttt, neighborhood",
    "blocks": "blocks",
}
"""Mixers of the blocks, in turn, by the name of the config."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do the runs that are missing, and update the table and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/cifar10"), help="images, in train/ and test/")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the trainings")
    parser.add_argument("--mixers", default=",".join(MIXERS), help="configs, separated by commas")
    parser.add_argument("--seeds", default="0", help="seeds, separated by commas; none with an empty string")
    args = parser.parse_args(argv)
    rows = read_table(TABLE)
    for seed in filter(None, args.seeds.split(",")):
        for mixer in args.mixers.split(","):
            if place({"mixer": mixer, "seed": seed}) not in map(place, rows):
                rows = add_row(TABLE, measure(mixer, seed, args.root, args.runs), place)
    speeds = json.loads(SPEEDS.read_text(encoding="utf-8"))["results"] if SPEEDS.exists() else []
    fill(PAGE, BEGIN, END, markdown(rows, {row["model"]: row for row in speeds}))
    return 0


def place(row: Row) -> tuple[int, int]:
    """Return the place of a row in the table."""
    return list(MIXERS).index(row["mixer"]), int(row["seed"])


def measure(mixer: str, seed: str, root: Path, runs: Path) -> dict[str, Any]:
    """Return the row of a training."""
    options = [f"--config={CONFIGS / mixer}.yaml", f"--seed_everything={seed}"]
    summary, result = train_and_test(f"mixers-{mixer}-{seed}", options, root, runs)
    return {
        "mixer": mixer,
        "seed": seed,
        "model": summary["model"],
        "parameters": summary["parameters"],
        "epochs": summary["epochs"],
        "test_top1": round(100 * result.top1, 2),
        "test_images": result.num_images,
        "hardware": name_hardware(summary),
        "torch": summary["versions"]["torch"],
    }


def markdown(rows: Sequence[dict[str, Any]], speeds: dict[str, dict[str, Any]]) -> str:
    """Return the table of docs/mixers.md: each mixer is compared with the first one."""
    scores = {mixer: [float(row["test_top1"]) for row in rows if row["mixer"] == mixer] for mixer in MIXERS}
    deviation = pooled_deviation(list(scores.values()))
    first = next(iter(MIXERS))
    lines = [
        "| mixers of the blocks | parameters | GMACs | img/s | seeds | test top-1 | against 5×5 neighborhood |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for mixer, words in MIXERS.items():
        own = [row for row in rows if row["mixer"] == mixer]
        if not own:
            continue
        speed = speeds.get(own[0]["model"], {})
        gmacs, rate = (speed.get(key) for key in ("gmacs", "images_per_second"))
        cells = [
            words,
            f"{int(own[0]['parameters']):,}",
            "–" if gmacs is None else f"{gmacs:.3f}",
            "–" if rate is None else f"{rate:,.0f}",
            str(len(own)),
            mean_and_deviation(scores[mixer], 2),
            "" if mixer == first or not scores[first] else compare(scores[mixer], scores[first], deviation),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Return the standard deviation within groups, pooled over those of several values; None if there are none."""
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    return math.sqrt(sum((len(g) - 1) * statistics.variance(g) for g in several) / freedom) if freedom else None


def compare(scores: Sequence[float], others: Sequence[float], deviation: float | None) -> str:
    """Return the difference of two means in words; below twice the pooled deviation there is none."""
    if deviation is None:
        return "not known from one seed"
    difference = statistics.mean(scores) - statistics.mean(others)
    return "no difference" if abs(difference) < 2 * deviation else f"{difference:+.1f}"


if __name__ == "__main__":
    sys.exit(main())
