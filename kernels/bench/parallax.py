"""Time Parallax attention beside neighborhood attention with the same windows, after checking what it computes.

    python -m kernels.bench.parallax --device cpu

Rows are interleaved: the ratio to neighborhood attention holds on a machine that does other things as well. The unfused
pair, whose outputs and gradients the fused kernel must have, is timed as a third contender.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.bench.measure import largest_error, time_in_turn
from kernels.bench.report import Report
from kernels.bench.script import DTYPES, choose, new_parser, prepare, run
from visionattn_kernels import Window, parallax_attention_2d, windowed_attention

COLUMNS = ("dtype", "map", "kernel_size", "heads", "head_dim", "batch", "direction", "contender", "median_ms", "ratio")
BASELINE = "neighborhood attention"
PROBLEMS = ((56, 7), (28, 7), (16, 5))
"""Side of the map and kernel size."""

TOLERANCE = 1e-4
"""Error of the fused kernel, relative to the largest value; float32 only."""


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if the fused kernel agrees with the unfused pair."""
    parser = new_parser(__doc__, "float32")
    parser.add_argument("--batch", type=int, help="images (default: 1)")
    args = parser.parse_args(argv)
    device = prepare(args, "parallax")
    dtypes = choose("--dtype", args.dtype or "float32", DTYPES)
    report = Report(args.output, device, COLUMNS)
    wrong = False
    for dtype in dtypes:
        for side, kernel_size in ((8, 3),) if args.quick else PROBLEMS:
            shape = (args.batch or 1, side, side, 3, 32)
            q, k, v, r = (torch.randn(shape, device=device, dtype=DTYPES[dtype]).requires_grad_() for _ in range(4))
            contenders = make_contenders(q, k, v, r, Window.neighborhood(kernel_size))
            if dtype == "float32" and not (error := disagreement(contenders, (q, k, v, r))) <= TOLERANCE:
                print(f"error: {side}x{side}, k {kernel_size}: off by {error:.2g}; not timed", file=sys.stderr)
                wrong = True
                continue
            for direction in ("forward", "forward+backward"):
                steps = {name: make_step(f, (q, k, v, r), direction) for name, f in contenders.items()}
                medians = time_in_turn(steps, device, args.repeats)
                fixed = {
                    "dtype": dtype, "map": side, "kernel_size": kernel_size, "heads": shape[3], "head_dim": shape[4],
                    "batch": shape[0], "direction": direction,
                }  # fmt: skip
                rows = [
                    {**fixed, "contender": name, "median_ms": ms, "ratio": ms / medians[BASELINE]}
                    for name, ms in medians.items()
                ]
                report.add(rows)
                for row in rows:
                    print(
                        f"{side}x{side}, k {kernel_size}, {direction}, {dtype}: {row['contender']} "
                        f"{row['median_ms']:.2f} ms, {row['ratio']:.2f}x",
                        flush=True,
                    )
    if args.output:
        print(f"wrote {args.output}")
    return int(wrong)


def make_contenders(q: Tensor, k: Tensor, v: Tensor, r: Tensor, window: Window) -> dict[str, Callable[[], Tensor]]:
    """Return the functions to time, the baseline first."""
    return {
        BASELINE: lambda: windowed_attention(q, k, v, window),
        "parallax": lambda: parallax_attention_2d(q, k, v, r, window),
        "parallax, unfused": lambda: parallax_attention_2d(q, k, v, r, window, backend="unfused"),
    }


def disagreement(contenders: dict[str, Callable[[], Tensor]], tensors: tuple[Tensor, ...]) -> float:
    """Return the largest error of outputs and gradients of Parallax attention, relative to the unfused pair's."""
    found = []
    for name in ("parallax", "parallax, unfused"):
        out = contenders[name]()
        found.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    return largest_error(*found)


def make_step(function: Callable[[], Tensor], tensors: tuple[Tensor, ...], direction: str) -> Callable[[], object]:
    """Return one run in a direction."""

    def forward() -> Tensor:
        with torch.no_grad():
            return function()

    def forward_backward() -> object:
        return torch.autograd.grad(function().sum(), tensors, allow_unused=True)

    return forward if direction == "forward" else forward_backward


if __name__ == "__main__":
    sys.exit(run(main))
