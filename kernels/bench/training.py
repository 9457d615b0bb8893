"""Measure the training loop of train.py beside a plain loop of PyTorch and one after timm's training script.

    python -m kernels.bench.training --device cpu
    python -m kernels.bench.training --device cpu --root data/cifar10

Each loop runs in a process of its own, in turn, each round in another order: `--repeats` rounds after a first one that
is not timed. In that one all must see as many images per step, train as many parameters, and have losses of the same
scale. The time of a step is the mean over all steps after the first ten, data loading, logging and schedule included,
validation and checkpoints not; of the rounds, the median counts. Ours is to take at most 5% longer than the plain loop.

The models are small, so that what surrounds them shows: a step of theirs takes milliseconds. Images are JPEG files of
32 pixels, scikit-learn's digits where no folder is given.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernels.bench.loops import LOOPS, STARTED, Record, Task, check_root, write_digits
from kernels.bench.peers import OURS
from kernels.bench.report import Report, package_version
from kernels.bench.script import choose, new_parser, prepare, run

COLUMNS = (
    *("dtype", "model", "batch", "workers", "contender", "version"),
    *("step_ms", "images_per_second", "ratio_to_ours", "first_step_s", "peak_mb"),
)
MODELS = ("nat_pico", "resnet18", "test_resnet")
WORKERS = ("0", "2")
WARM_UP = 10
BOUND = 1.05
PLAIN = "plain loop"
SAME_SCALE = 1.25
"""Losses of the same scale differ by no more than this factor, in the mean over the first steps."""


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if all loops do the same."""
    parser = new_parser(__doc__, "float32")
    parser.set_defaults(repeats=5)
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--workers", default=",".join(WORKERS), help="processes that read images (default: 0,2)")
    parser.add_argument("--batch", type=int, default=32, help="images per step (default: 32)")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of a round (default: 100)")
    parser.add_argument("--root", type=Path, help="folder with train/CLASS and val/CLASS (default: digits)")
    args = parser.parse_args(argv)
    check_root(args.root)
    device = prepare(args, "training")
    if device.type != "cpu":
        raise ValueError("--device cuda: the loops are compared on cpu, where what surrounds a step is not hidden")
    if args.steps < 1:
        raise ValueError(f"--steps must be at least 1; got {args.steps}")
    models, workers = choose("--models", args.models, MODELS), choose("--workers", args.workers, WORKERS)
    batch, steps = args.batch, args.steps
    if args.quick:
        models, workers, batch, steps = ["test_resnet"], ["0"], 4, 2
    report, wrong = Report(args.output, device, COLUMNS, steps=steps), False
    with tempfile.TemporaryDirectory() as folder:
        root = args.root or Path(folder)
        if args.root is None:
            write_digits(root, batch * (WARM_UP + steps))
        for model in models:
            for number in workers:
                task = Task(str(root.resolve()), model, batch, WARM_UP + steps, int(number), args.threads)
                records = measure(task, 0 if args.quick else args.repeats)
                if difference := disagreement(records):
                    print(f"error: {model}: {difference}: not timed", file=sys.stderr)
                    wrong = True
                    continue
                summarise(task, records, report)
    if args.output:
        print(f"wrote {args.output}")
    return int(wrong)


def measure(task: Task, rounds: int) -> dict[str, list[Record]]:
    """Return records of each loop: of a first round for comparison only, then of the timed rounds."""
    records: dict[str, list[Record]] = {name: [] for name in LOOPS}
    for number in range(1 + rounds):
        for name in random.Random(number).sample(list(LOOPS), len(LOOPS)):
            records[name].append(train(name, task))
        if number == 0 and disagreement(records):
            break
    return records


def train(name: str, task: Task) -> Record:
    """Run a loop in a process of its own.

    Raises:
        ValueError: It failed.
    """
    settings = environment() | {STARTED: str(time.time()), "OMP_NUM_THREADS": str(task.threads)}
    command = [sys.executable, "-m", "kernels.bench.loops", name, json.dumps(asdict(task))]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
    if done.returncode:
        raise ValueError(f"the loop {name!r} on {task.model} failed: {(done.stderr.splitlines() or ['?'])[-1]}")
    return Record(**json.loads(done.stdout.splitlines()[-1]))


def environment() -> dict[str, str]:
    """Return the variables of a process whose start is timed: it keeps bytecode, as an installed package does."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def disagreement(records: Mapping[str, Sequence[Record]]) -> str | None:
    """Return the differences between loops, by their first round; None if they do the same."""
    first = {name: found[0] for name, found in records.items()}
    for what in ("images", "parameters"):
        values: dict[str, Any] = {name: getattr(record, what) for name, record in first.items()}
        if any(value != values[OURS] for value in values.values()):
            shown = {name: sum(value) if isinstance(value, list) else value for name, value in values.items()}
            return f"{what} differ: {shown}"
    losses = {name: statistics.mean(record.losses[:WARM_UP]) for name, record in first.items()}
    if not max(losses.values()) <= SAME_SCALE * min(losses.values()):
        return f"losses of the first {WARM_UP} steps differ: { {name: round(x, 3) for name, x in losses.items()} }"
    return None


def step_ms(record: Record) -> float:
    """Return the mean milliseconds of a step after the warm-up."""
    return 1e3 * (record.ends[-1] - record.ends[WARM_UP - 1]) / (len(record.ends) - WARM_UP)


def summarise(task: Task, records: Mapping[str, Sequence[Record]], report: Report) -> None:
    """Add and print the medians of all rounds except the first, if there are others."""
    timed = {name: found[1:] or found for name, found in records.items()}
    steps = {name: statistics.median(map(step_ms, found)) for name, found in timed.items()}
    report.add(
        {
            "dtype": "float32",
            "model": task.model,
            "batch": task.batch,
            "workers": task.workers,
            "contender": name,
            "version": package_version("torch" if name == PLAIN else name),
            "step_ms": steps[name],
            "images_per_second": 1e3 * task.batch / steps[name],
            "ratio_to_ours": steps[name] / steps[OURS],
            "first_step_s": statistics.median(record.first_step_s for record in found),
            "peak_mb": statistics.median(record.peak_mb for record in found),
        }
        for name, found in timed.items()
    )
    times = ", ".join(f"{name} {value:.2f} ms" for name, value in steps.items())
    overhead = steps[OURS] / steps[PLAIN]
    verdict = "" if overhead <= BOUND else f", above the bound of {BOUND}"
    print(
        f"{task.model} B{task.batch}, {task.workers} workers: {times}; ours/plain {overhead:.3f}{verdict}", flush=True
    )


if __name__ == "__main__":
    sys.exit(run(main))
