"""Time windowed attention beside its peers, in one run, after checking that all compute the same.

    python -m kernels.bench.attention --device cpu
    python -m kernels.bench.attention --device cuda --dtype bfloat16,float16
    python -m kernels.bench.attention --device cuda --dtype bfloat16 --only nat-tiny-1 --peers flex,sdpa-flash
    python -m kernels.bench.attention --device cpu --backend tiled,reference

A row gives the median time of one contender and how many times longer it takes than this library. A contender whose
output or gradients are not the reference's is not timed: the script says so and ends with status 1. Full attention
computes another function of the same maps and is timed as the price of doing without windows. With --backend, this
library's backends are timed beside its own choice, in place of the peers.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.bench.gate import Gate
from kernels.bench.measure import Rates, Run, measure_rates, peak_bytes, time_in_turn
from kernels.bench.peers import OURS, PEERS, Contender, ours, peers
from kernels.bench.problems import DIRECTIONS, Direction, Problem, attention_problems
from kernels.bench.report import Report, published
from kernels.bench.script import DTYPES, choose, first_line, new_parser, prepare, run
from visionattn_kernels.attention.dispatch import BACKENDS

COLUMNS = (
    *("dtype", "problem", "direction", "contender", "version", "median_ms", "ratio_to_ours"),
    *("floor_ms", "fraction_of_floor", "peak_mb"),
)

Admitted = list[tuple[Contender, Run]]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if all outputs are right."""
    args = _parse(argv)
    what = "attention" if args.backend is None else "backends"
    device = prepare(args, what)
    dtypes = choose("--dtype", args.dtype or ("float32" if args.device == "cpu" else "bfloat16,float16"), DTYPES)
    backends = [] if args.backend is None else choose("--backend", args.backend, BACKENDS)
    names = choose("--peers", args.peers, PEERS) if args.peers else [] if args.backend else list(PEERS)
    problems = choose_problems(args.only, device, args.batch, args.quick)

    rates = {name: measure_rates(device, DTYPES[name], args.quick) for name in dtypes}
    report = Report(args.output, device, COLUMNS, rates={name: dataclasses.asdict(rates[name]) for name in rates})
    print(", ".join(f"{name} {found}" for name, found in report.origin["versions"].items()))
    wrong = False
    for dtype in dtypes:
        for problem in problems:
            tensors = problem.make_tensors(device, DTYPES[dtype])
            contenders = [ours(problem), *(ours(problem, name) for name in backends)]
            contenders += [c for c in peers(problem, device, DTYPES[dtype]) if c.name in names]
            admitted, all_right = admit(contenders, problem, tensors)
            wrong |= not all_right
            for direction in DIRECTIONS:
                able = [(c, f) for c, f in admitted if c.backward or direction == "forward"]
                if able and able[0][0].name == OURS:
                    rows = compare(problem, direction, able, tensors, rates[dtype], args.repeats)
                    report.add({"dtype": dtype, **row} for row in rows)
                    show(problem, direction, dtype, rows)
    if args.output:
        print(f"wrote {args.output}")
    return int(wrong)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__, "float32 on cpu, bfloat16,float16 on cuda")
    parser.add_argument("--batch", type=int, help="images of the networks' stages (4 on cpu, 128 on cuda)")
    parser.add_argument(
        "--backend", help="backends of this library, separated by commas, to time in place of the peers"
    )
    parser.add_argument("--peers", help=f"which of {', '.join(PEERS)}, separated by commas (default: all that can run)")
    parser.add_argument("--only", default="", help="problems whose name contains one of these, separated by commas")
    return parser.parse_args(argv)


def choose_problems(only: str, device: torch.device, batch: int | None, quick: bool) -> list[Problem]:
    """Return the problems of a device whose names contain one of the words of `only`.

    Raises:
        ValueError: A word is in no problem's name.
    """
    problems, words = attention_problems(device, batch, quick), only.split(",")
    for word in words:
        if not any(word in p.name for p in problems):
            raise ValueError(f"--only {word!r} is in no problem's name")
    return [p for p in problems if any(word in p.name for word in words)]


def admit(contenders: Sequence[Contender], problem: Problem, tensors: tuple[Tensor, ...]) -> tuple[Admitted, bool]:
    """Return the contenders that run the problem correctly, and whether none was wrong and this library ran.

    A contender whose backward pass cannot run is timed on the forward pass only.
    """
    gate = Gate.create(problem, tensors)
    admitted, all_right = [], True
    for contender in contenders:
        for backward in (True, False) if contender.backward else (False,):
            what = f"{contender.name} on {problem.name}, {DIRECTIONS[backward]}"
            try:
                function = contender.build()
                errors = gate.errors(function, backward)
            except Exception as failure:
                # A backend that was named may refuse a problem.
                if contender.name == OURS or (contender.ours and not isinstance(failure, ValueError)):
                    traceback.print_exc()
                    all_right = False
                print(f"cannot run {what}: {first_line(failure)}", file=sys.stderr)
                continue
            bad = {name: error for name, error in errors.items() if not error <= gate.tolerance}
            if contender.same_function and bad:
                all_right = False
                listed = ", ".join(f"{name} {error:.2g}" for name, error in bad.items())
                print(f"error: {what} is wrong (bound {gate.tolerance}): {listed}; not timed", file=sys.stderr)
            else:
                admitted.append((dataclasses.replace(contender, backward=backward), function))
            break
    return admitted, all_right


def compare(
    problem: Problem,
    direction: Direction,
    contenders: Admitted,
    tensors: tuple[Tensor, ...],
    rates: Rates,
    repeats: int,
) -> list[dict[str, Any]]:
    """Time contenders, this library first, and measure the peak memory of one more run of each."""
    device, dtype = tensors[0].device, tensors[0].dtype
    shape = (problem.batch, *problem.window.num_queries(problem.size), problem.heads, problem.head_dim)
    grad = problem.to_output(torch.randn(shape, device=device, dtype=dtype))
    inputs = tuple(x.detach() for x in tensors)

    def timed(function: Run) -> Any:
        def forward() -> None:
            function(*inputs)

        def forward_backward() -> None:
            torch.autograd.grad(function(*tensors), tensors, grad)

        return forward if direction == "forward" else forward_backward

    runs = {c.name: timed(function) for c, function in contenders}
    medians = time_in_turn(runs, device, repeats)
    floor = rates.floor_ms(problem.flops(direction), problem.bytes_moved(tensors, direction))
    return [
        {
            "problem": problem.name,
            "direction": direction,
            "contender": contender.name,
            "version": contender.version,
            "median_ms": medians[contender.name],
            "ratio_to_ours": medians[contender.name] / medians[OURS],
            "floor_ms": floor,
            "fraction_of_floor": floor / medians[contender.name] if contender.ours else "",
            "peak_mb": peak_bytes(runs[contender.name], device) / 2**20,
        }
        for contender, _ in contenders
    ]


def show(problem: Problem, direction: Direction, dtype: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the measurements and, separately, published figures."""
    print(f"{problem.name}, {direction}, {dtype} (floor {rows[0]['floor_ms']:.3g} ms)")
    for row in rows:
        name = f"{row['contender']} {row['version']}"
        numbers = f"{row['median_ms']:10.3f} ms {row['ratio_to_ours']:8.2f}x {row['peak_mb']:10.1f} MiB"
        print(f"  {name:32} {numbers}", flush=True)
    for row in published(problem.name, direction):
        print(f"  published: {row['contender']} {row['value']} {row['unit']} on {row['hardware']} ({row['source']})")


if __name__ == "__main__":
    sys.exit(run(main))
