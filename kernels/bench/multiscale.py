"""Measure power-of-two windows beside 7x7 neighborhood attention, which sees as many keys on maps of 56x56.

    python -m kernels.bench.multiscale --device cpu --threads 1

Both have a relative bias and two heads of 32 channels. There are as many images as fit 3,136 queries. Contenders are
`multiscale_attention_2d` with its default backend, its merged calls of `windowed_attention`, and neighborhood
attention. The first two must agree, outputs and gradients, before anything is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.bench.measure import largest_error, time_in_turn
from kernels.bench.report import Report, package_version
from kernels.bench.script import DTYPES, choose, new_parser, prepare, run
from visionattn_kernels import multiscale_attention_2d, neighborhood_attention_2d
from visionattn_kernels.multiscale import merged
from visionattn_kernels.multiscale.problem import check_multiscale

COLUMNS = (
    *("dtype", "side", "batch", "scales", "direction", "contender"),
    *("version", "median_ms", "ratio_to_neighborhood"),
)
SIDES = ("14", "28", "56", "64")
NEIGHBORHOOD = "neighborhood 7x7"
QUERIES, HEADS, HEAD_DIM = 56 * 56, 2, 32
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if the implementations agree."""
    parser = new_parser(__doc__, "float32")
    parser.add_argument("--sides", help=f"of maps, separated by commas (default: {','.join(SIDES)})")
    args = parser.parse_args(argv)
    device = prepare(args, "multiscale")
    dtypes = choose("--dtype", args.dtype or "float32", DTYPES)
    report = Report(args.output, device, COLUMNS)
    for side in map(int, choose("--sides", args.sides or ("14" if args.quick else ",".join(SIDES)), SIDES)):
        for dtype in dtypes:
            shape = (max(1, QUERIES // side**2), side, side, HEADS, HEAD_DIM)
            maps = [torch.randn(shape, dtype=DTYPES[dtype], device=device, requires_grad=True) for _ in range(3)]
            contenders, scales = make_contenders(side, device)
            error = disagreement(*list(contenders.values())[:2], maps)
            if not error <= TOLERANCE[DTYPES[dtype]]:
                print(f"error: implementations differ by {error:.2g} on {side}x{side}: not timed", file=sys.stderr)
                return 1
            problem = {"dtype": dtype, "side": side, "batch": shape[0], "scales": scales}
            measure(report, problem, contenders, maps, device, args.repeats)
    if args.output:
        print(f"wrote {args.output}")
    return 0


def make_contenders(side: int, device: torch.device) -> tuple[dict[str, Attend], int]:
    """Return the implementations, and the number of scales that a map has."""
    dilations = [2**i for i in range((side - 1).bit_length())]
    rpb = torch.randn(HEADS, len(dilations), 3, 3, device=device, requires_grad=True)
    table = torch.randn(HEADS, 13, 13, device=device, requires_grad=True)

    def merge(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return merged.attention(check_multiscale(q, k, v, dilations, 3, rpb, None), None)[0]

    contenders: dict[str, Attend] = {
        "visionattn": lambda q, k, v: multiscale_attention_2d(q, k, v, dilations, rpb=rpb),
        "merged calls": merge,
        NEIGHBORHOOD: lambda q, k, v: neighborhood_attention_2d(q, k, v, 7, rpb=table),
    }
    return contenders, len(dilations)


def disagreement(first: Attend, second: Attend, maps: list[Tensor]) -> float:
    """Return the largest difference of outputs and gradients, each relative to the largest entry."""
    upstream = torch.randn_like(maps[0])
    results = []
    for attend in (first, second):
        out = attend(*maps)
        results.append([out, *torch.autograd.grad(out, maps, upstream)])
    return largest_error(*results)


def measure(
    report: Report,
    problem: dict[str, object],
    contenders: dict[str, Attend],
    maps: list[Tensor],
    device: torch.device,
    repeats: int,
) -> None:
    """Add the times of all contenders."""
    upstream = torch.randn_like(maps[0])

    def forward(attend: Attend) -> None:
        with torch.inference_mode():
            attend(*maps)

    def train(attend: Attend) -> None:
        attend(*maps).backward(upstream)

    for direction, step in (("forward", forward), ("forward+backward", train)):
        runs = {name: lambda attend=attend, step=step: step(attend) for name, attend in contenders.items()}
        medians = time_in_turn(runs, device, repeats)
        for name, median in medians.items():
            ratio = median / medians[NEIGHBORHOOD]
            row = {**problem, "direction": direction, "contender": name, "version": package_version("visionattn")}
            report.add([{**row, "median_ms": median, "ratio_to_neighborhood": ratio}])
            print(
                f"{problem['side']}x{problem['side']}, {direction}, {name}: {median:.2f} ms ({ratio:.2f}x)", flush=True
            )


if __name__ == "__main__":
    sys.exit(run(main))
