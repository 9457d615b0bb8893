"""Compare what helps rare classes, on an imbalanced part of CIFAR-10: class weights, a balanced sampler, focal loss.

    python results/imbalanced.py --root data/cifar10

The training images are 4,998 of CIFAR-10's. Their number falls exponentially from class to class, in alphabetical
order: from 2,014 to 20. Each way of training starts from three seeds. The weights
after the last epoch are shown the test images, which have all classes equally often. results/imbalanced.csv gets a row
for each run, and runs that it has are not repeated; docs/labels.md gets the table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results.pages import Row, add_row, fill, mean_and_deviation, name_hardware, read_table
from results.trainings import train_and_test
from visionattn.output import write_csv

ROOT = Path(__file__).parent.parent
TABLE, PAGE = ROOT / "results" / "imbalanced.csv", ROOT / "docs" / "labels.md"
BEGIN, END = "<!-- imbalanced: made by results/imbalanced.py -->", "<!-- imbalanced ends -->"
WAYS = {
    "none": [],
    "weights": ["--data.balance=weights"],
    "sampler": ["--data.balance=sampler"],
    "focal": ["--model.loss=focal"],
}
SEEDS = (0, 1, 2)
LARGEST, RATIO = 2014, 100
"""Number of training images of the first class, and its ratio to that of the last class."""
VALIDATED = 10
"""Validation images of each class; they select nothing."""
RECIPE = [
    *("--model.name=resnet_pico", "--model.lr=0.004", "--model.weight_decay=0.05", "--model.warmup_epochs=1"),
    *("--data.img_size=32", "--data.batch_size=64", "--data.crop_padding=4", "--data.crop_pct=1"),
    *("--data.color_jitter=0", "--trainer.max_epochs=6", "--trainer.gradient_clip_val=1"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Do the runs that are missing, and update the table and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/cifar10"), help="images, in train/ and test/")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the trainings")
    args = parser.parse_args(argv)
    rows = read_table(TABLE)
    labels = args.runs / "imbalanced.csv"
    write_csv(list_images(args.root), labels)
    for seed in SEEDS:
        for way in WAYS:
            if place({"balance": way, "seed": seed}) not in map(place, rows):
                rows = add_row(TABLE, measure(way, seed, labels, args.root, args.runs), place)
    fill(PAGE, BEGIN, END, markdown(rows))
    return 0


def count_images(num_classes: int) -> list[int]:
    """Return the number of training images of each class."""
    return [round(LARGEST * RATIO ** (-index / (num_classes - 1))) for index in range(num_classes)]


def list_images(root: Path) -> list[dict[str, str]]:
    """Return a row for each image to train and to validate on: the first ones of each class, and those after them."""
    names = sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir())
    rows = []
    for name, count in zip(names, count_images(len(names)), strict=True):
        files = sorted((root / "train" / name).iterdir())[: count + VALIDATED]
        for number, file in enumerate(files):
            split = "train" if number < count else "val"
            rows.append({"path": file.relative_to(root).as_posix(), "label": name, "split": split})
    return rows


def place(row: Row) -> tuple[int, int]:
    """Return the place of a row in the table."""
    return int(row["seed"]), list(WAYS).index(row["balance"])


def measure(way: str, seed: int, labels: Path, root: Path, runs: Path) -> dict[str, Any]:
    """Return the row of a training."""
    options = [*RECIPE, *WAYS[way], f"--seed_everything={seed}", f"--data.labels={labels}"]
    summary, result = train_and_test(f"imbalanced-{way}-{seed}", options, root, runs)
    rarest = [row["top1"] for row in result.per_class[-3:]]
    return {
        "balance": way,
        "seed": seed,
        "balanced_top1": round(100 * result.balanced_top1, 2),
        "rarest_three_top1": round(100 * statistics.mean(rarest), 2),
        "most_frequent_top1": round(100 * result.per_class[0]["top1"], 2),
        "test_images": result.num_images,
        "hardware": name_hardware(summary),
        "torch": summary["versions"]["torch"],
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of docs/labels.md."""
    columns = {
        "balanced top-1": "balanced_top1",
        "three rarest classes": "rarest_three_top1",
        "most frequent class": "most_frequent_top1",
    }
    lines = [f"| | seeds | {' | '.join(columns)} |", "|---|---:|" + "---:|" * len(columns)]
    for way, options in WAYS.items():
        own = [row for row in rows if row["balance"] == way]
        cells = [mean_and_deviation([float(row[key]) for row in own], 1) for key in columns.values()]
        lines.append(f"| {' '.join(f'`{option}`' for option in options) or way} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
