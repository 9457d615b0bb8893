"""Measure the start-up time of commands and trainings, and the cost of imports.

    python -m kernels.bench.startup --device cpu

Each command runs in a process of its own, in turn, each round in another order, after a first round that fills the
caches of files and bytecode and is not timed. The ratio is to `import timm`. Memory is the most that a process held.
The first step of a training ends with its weights updated, for each of the loops of training.py: this library's is
`train.py fit`.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kernels.bench.loops import LOOPS, Task, write_digits
from kernels.bench.peers import OURS
from kernels.bench.report import Report
from kernels.bench.script import new_parser, prepare, run
from kernels.bench.training import environment, train

COLUMNS = ("dtype", "command", "median_ms", "ratio_to_timm", "peak_mb")
REPOSITORY = Path(__file__).parents[2]
TIMM = "import timm"
COMMANDS: dict[str, list[str]] = {
    "import torch": ["-c", "import torch"],
    TIMM: ["-c", "import timm"],
    "import visionattn": ["-c", "import visionattn"],
    "import timm, visionattn": ["-c", "import timm, visionattn"],
    "import visionattn_kernels": ["-c", "import visionattn_kernels"],
    "visionattn --help": ["-m", "visionattn", "--help"],
    "train.py --help": ["train.py", "--help"],
    "train.py fit --help": ["train.py", "fit", "--help"],
    "eval.py --help": ["eval.py", "--help"],
    "eval.py classify --help": ["eval.py", "classify", "--help"],
}
FIRST_STEPS = {f"first step: {'train.py fit' if name == OURS else name}": name for name in LOOPS}
CHILD = "import resource, subprocess, sys\nsubprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)\n"
CHILD += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
"""Runs a command and prints the memory that it held: what a parent of many children could not tell apart."""


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print it."""
    parser = new_parser(__doc__, "float32")
    args = parser.parse_args(argv)
    device = prepare(args, "startup")
    names = [TIMM, "import visionattn"] if args.quick else [*COMMANDS, *FIRST_STEPS]
    times: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as root:
        task = Task(root, "test_resnet", batch=32, steps=1, workers=0, threads=args.threads)
        write_digits(Path(root), 2 * task.batch)
        memory = {name: peak_mb(name, task) for name in names}  # the round that is not timed
        for number in range(args.repeats):
            for name in random.Random(number).sample(names, len(names)):
                times[name].append(seconds(name, task))
    medians = {name: 1e3 * statistics.median(found) for name, found in times.items()}
    report = Report(args.output, device, COLUMNS)
    report.add(
        {
            "dtype": "float32",
            "command": name,
            "median_ms": median,
            "ratio_to_timm": median / medians[TIMM],
            "peak_mb": memory[name],
        }
        for name, median in medians.items()
    )
    for name, median in medians.items():
        print(f"{name}: {median:.0f} ms, {median / medians[TIMM]:.2f}x import timm, {memory[name]:.0f} MiB")
    if args.output:
        print(f"wrote {args.output}")
    return 0


def seconds(name: str, task: Task) -> float:
    """Time a command, or the first step of a training."""
    if name in FIRST_STEPS:
        return train(FIRST_STEPS[name], task).first_step_s
    began = time.perf_counter()
    execute(COMMANDS[name])
    return time.perf_counter() - began


def peak_mb(name: str, task: Task) -> float:
    """Return the most memory that a command or a training held, in MiB."""
    if name in FIRST_STEPS:
        return train(FIRST_STEPS[name], task).peak_mb
    return float(execute(["-c", CHILD, sys.executable, *COMMANDS[name]]))


def execute(command: list[str]) -> str:
    """Run Python on a command and return what it prints.

    Raises:
        ValueError: It fails.
    """
    words = [sys.executable, *command]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise ValueError(f"python {' '.join(command)} failed: {(done.stderr.splitlines() or ['?'])[-1]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(run(main))
