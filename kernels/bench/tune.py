"""Measure tiles of the Triton kernels for the benchmark problems, in the order of the networks' stages.

    python -m kernels.bench.tune --device cuda --seconds 6

Tiles are kept in the folder $VISIONATTN_CACHE; other processes read them with VISIONATTN_TUNE=1. A row gives the
seconds that the measurements of a problem took, and the milliseconds of forward and backward with the tiles that were
chosen. On a CPU, which has no such tiles, the problems run and nothing is measured.
"""

from __future__ import annotations

import os
import sys
import time

import torch

from kernels.bench.attention import choose_problems
from kernels.bench.measure import time_in_turn
from kernels.bench.peers import OURS, ours
from kernels.bench.report import Report
from kernels.bench.script import DTYPES, choose, new_parser, prepare, run

COLUMNS = ("dtype", "problem", "direction", "tuning_s", "median_ms")


def main(argv: list[str] | None = None) -> int:
    """Measure the tiles of all problems."""
    parser = new_parser(__doc__, "float32 on cpu, bfloat16 on cuda")
    parser.add_argument("--batch", type=int, help="images of the networks' stages (4 on cpu, 128 on cuda)")
    parser.add_argument("--only", default="", help="problems whose name contains one of these, separated by commas")
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, per kernel and problem (default: 60)")
    args = parser.parse_args(argv)
    device = prepare(args, "tune")
    dtypes = choose("--dtype", args.dtype or ("float32" if args.device == "cpu" else "bfloat16"), DTYPES)
    if not args.seconds > 0:
        raise ValueError(f"--seconds must be above 0; got {args.seconds}")
    os.environ |= {"VISIONATTN_TUNE": "1", "VISIONATTN_TUNE_SECONDS": str(args.seconds)}
    report = Report(args.output, device, COLUMNS, seconds=args.seconds)
    for dtype in dtypes:
        for problem in choose_problems(args.only, device, args.batch, args.quick):
            tensors = problem.make_tensors(device, DTYPES[dtype])
            attend = ours(problem).build()
            grad = torch.randn_like(attend(*(x.detach() for x in tensors)))

            def forward_backward() -> None:
                torch.autograd.grad(attend(*tensors), tensors, grad)  # noqa: B023

            start = time.perf_counter()
            forward_backward()
            seconds = time.perf_counter() - start
            median = time_in_turn({OURS: forward_backward}, device, args.repeats)[OURS]
            row = {"direction": "forward+backward", "tuning_s": seconds, "median_ms": median}
            report.add([{"dtype": dtype, "problem": problem.name, **row}])
            print(f"{problem.name}, {dtype}: {seconds:.1f} s, then {median:.3f} ms", flush=True)
    if args.output:
        print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
