"""Check outputs and all gradients of named and of random problems on a device, with torch alone.

    python -m kernels.bench.smoke --device cuda
    python -m kernels.bench.smoke --device cuda --random 200 --seed 1

Each problem runs in every dtype with the backend that this library chooses, on CUDA with triton. The bound is `SLACK`
times the error of the eager reference in the same dtype, more than in the tests: some gradients of random problems
vanish, and chance decides how exactly. Nearly all the time goes into compiling kernels, in several processes on CUDA.
It needs no pytest; `pytest -m gpu` is thorough. The script ends with status 1 if a result is wrong or a kernel does not
run.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from kernels.bench.report import Report
from kernels.bench.script import DTYPES, choose, first_line, new_parser, prepare, run
from visionattn_kernels import Window, explain
from visionattn_kernels.testing import assert_matches_reference, make_inputs

Options = dict[str, Any]
Drawn = tuple[str, Window, tuple[int, int], Options]
Check = tuple[Drawn, str, str]
"""A problem, a device and a dtype."""

# name: window, map, and what else the inputs hold
NAMED: dict[str, tuple[Window, tuple[int, int], Options]] = {
    "stage 3 of NAT-Tiny": (Window.neighborhood(7), (14, 14), {"head_dim": 32, "rpb": True}),
    "stage 2 of DiNAT-Tiny": (Window.neighborhood(7, dilation=4), (28, 28), {"head_dim": 32, "rpb": True}),
    "v narrower than q": (Window.neighborhood(5), (12, 10), {"head_dim": 48, "v_dim": 16, "rpb": True}),
    "masked halo": (Window.halo(8, 3), (16, 12), {"head_dim": 16, "rel": True}),
    "zeros beyond the border": (Window.halo(8, 3, "zero"), (12, 9), {"head_dim": 64, "rel": True, "num_extra": 1}),
    "every bias": (Window.neighborhood(7), (40, 40), {"head_dim": 48, "rpb": True, "rel": True}),
    "causal sequence": (Window.sequence(64, is_causal=True), (1, 300), {"head_dim": 128}),
    "widest heads": (Window.neighborhood(9), (20, 18), {"head_dim": 256, "heads": 1}),
}
SLACK = 8.0
HEAD_DIMS = (8, 16, 24, 32, 48, 64, 80, 96, 128)


def main(argv: list[str] | None = None) -> int:
    """Run the checks; return exit status 0 if all results are right."""
    parser = new_parser(__doc__, "all")
    parser.add_argument("--random", type=int, help="random problems beside those with names (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the random problems (default: 0)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core on cuda, 1 on cpu)")
    args = parser.parse_args(argv)
    args.quick, quick = True, args.quick  # there are no rows to write
    device = prepare(args, "smoke")
    dtypes = choose("--dtype", args.dtype or ",".join(DTYPES), DTYPES)
    count = (2 if quick else 16) if args.random is None else args.random
    rng = random.Random(args.seed)
    problems = [(name, *rest) for name, rest in NAMED.items()][: 1 if quick else None]
    problems += [draw(rng, f"random {number}", 8 if quick else 40) for number in range(count)]
    origin = Report(None, device, ()).origin
    hardware = origin["hardware"]["name"]
    print(f"{hardware}; " + ", ".join(f"{name} {found}" for name, found in origin["versions"].items()), flush=True)
    if device.type == "cuda" and (reason := why_not_triton(device)):
        print(f"error: triton is not chosen on {hardware}: {reason}", file=sys.stderr)
        return 1
    checks = [(problem, device.type, dtype) for problem in problems for dtype in dtypes]
    workers = args.workers or (1 if device.type == "cpu" else os.cpu_count() or 1)
    found = map_in_processes(find_fault, checks, workers)
    faults = [fault for fault in found if fault is not None]
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    print(f"{len(checks) - len(faults)} of {len(checks)} checks passed")
    return int(bool(faults))


def why_not_triton(device: torch.device) -> str | None:
    """Return what `explain` says of triton if it is not the backend of a plain problem; None if it is."""
    q = torch.ones(1, 8, 8, 1, 32, device=device, dtype=torch.bfloat16)
    (said,) = (line for line in explain(q, q, q, Window.neighborhood(3)).splitlines() if line.startswith("triton: "))
    return None if said.startswith("triton: runs") else said


def map_in_processes(function: Callable[[Check], str | None], checks: list[Check], workers: int) -> list[str | None]:
    """Return the results of a function, in this process if there is one worker."""
    if workers == 1:
        return [function(check) for check in checks]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(function, checks))


def find_fault(check: Check) -> str | None:
    """Return how a check fails, with its problem; None if it passes."""
    (name, window, size, options), device, dtype = check
    try:
        inputs = make_inputs(window, size, **options, dtype=torch.float32, device=device)
        assert_matches_reference(window, inputs, None, DTYPES[dtype], slack=SLACK)
    except Exception as failure:
        return f"{name}, {dtype}, map {size}, {options}: {first_line(failure)}"
    return None


def draw(rng: random.Random, name: str, longest: int) -> Drawn:
    """Draw a window, a map of at most `longest` rows and columns, and the tensors of a problem."""
    boundary = rng.choice(("shift", "shift", "mask", "zero"))
    kernel, stride, dilation, causal = [], [], [], []
    for _ in range(2):
        kernel.append(rng.randint(1, 9))
        stride.append(rng.choice((1, 1, rng.randint(1, kernel[-1]))))
        dilation.append(rng.choice((1, 1, rng.randint(1, 4))))
        causal.append(rng.random() < 0.15)
    pairs = ((rows, columns) for rows, columns in (kernel, stride, dilation, causal))
    window = Window(*pairs, boundary)
    options = {
        "batch": rng.randint(1, 3),
        "heads": rng.randint(1, 4),
        "head_dim": rng.choice(HEAD_DIMS),
        "v_dim": rng.choice((None, None, rng.choice(HEAD_DIMS))),
        "rpb": rng.random() < 0.5,
        "rel": rng.random() < 0.3,
        "num_extra": rng.choice((0, 0, 0, rng.randint(1, 20))),
    }
    return name, window, (rng.randint(1, longest), rng.randint(1, longest)), options


if __name__ == "__main__":
    sys.exit(run(main))
