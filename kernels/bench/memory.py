"""Measure the peak memory of forward and backward against the number of positions, for every backend.

    python -m kernels.bench.memory --device cpu
    python -m kernels.bench.memory --device cuda --backend triton,tiled,gemm

One image, 2 heads of 32 channels, kernel 7 (the first stage of NAT-Tiny on larger and larger maps). Counted is what
torch's allocator hands out beyond the inputs: the output, what is kept for backward, gradients and scratch. The
exponent p of `memory ~ positions ** p` is 1 where memory is linear in the map, 2 where all scores are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from kernels.bench.measure import peak_bytes
from kernels.bench.peers import Contender, gather, ours
from kernels.bench.problems import Problem
from kernels.bench.report import Report, fit_exponent
from kernels.bench.script import DTYPES, choose, first_line, new_parser, prepare, run
from visionattn_kernels import Window
from visionattn_kernels.attention.dispatch import BACKENDS

COLUMNS = ("dtype", "map", "positions", "contender", "version", "peak_mb")
MAPS, QUICK_MAPS = (32, 64, 128, 256), (16, 32)
HEADS, HEAD_DIM, KERNEL_SIZE = 2, 32, 7

MAX_SCORES = {"cpu": 1 << 26, "cuda": 1 << 30}
"""The reference, which keeps all scores several times over, stops at larger maps."""


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    parser = new_parser(__doc__, "float32 on cpu, bfloat16 on cuda")
    parser.add_argument("--backend", help="backends of this library, separated by commas (default: all)")
    args = parser.parse_args(argv)
    device = prepare(args, "memory")
    dtypes = choose("--dtype", args.dtype or ("float32" if args.device == "cpu" else "bfloat16"), DTYPES)
    backends = choose("--backend", args.backend, BACKENDS) if args.backend else list(BACKENDS)
    report = Report(args.output, device, COLUMNS)
    for dtype in dtypes:
        found: dict[str, dict[int, float]] = {}
        failed = set()
        for length in QUICK_MAPS if args.quick else MAPS:
            for contender in contenders(length, [name for name in backends if name not in failed], device):
                peak = measure(contender, length, device, DTYPES[dtype])
                if peak is None:
                    failed.add(contender.name)
                    continue
                found.setdefault(contender.name, {})[length**2] = peak
                row = {"map": f"{length}x{length}", "positions": length**2, "peak_mb": peak}
                report.add([{"dtype": dtype, "contender": contender.name, "version": contender.version, **row}])
        for name, peaks in found.items():
            points = ", ".join(f"{n} positions {mb:.1f}" for n, mb in peaks.items())
            exponent = f"exponent {fit_exponent(list(peaks), list(peaks.values())):.2f}" if len(peaks) > 1 else ""
            print(f"{name:12} {dtype}: MiB at {points}; {exponent}")
    if args.output:
        print(f"wrote {args.output}")
    return 0


def make_problem(length: int) -> Problem:
    """Return the problem on a map of length x length."""
    return Problem(f"{length}x{length}", Window.create(KERNEL_SIZE), (length, length), 1, HEADS, HEAD_DIM)


def contenders(length: int, backends: list[str], device: torch.device) -> Iterator[Contender]:
    """Return the backends, except the reference on maps too large for it, and gathered keys in plain torch."""
    problem = make_problem(length)
    for name in backends:
        if name != "reference" or HEADS * length**4 <= MAX_SCORES[device.type]:
            yield ours(problem, name)
    yield Contender("gather", torch.__version__, lambda: gather(problem.window, problem.size, device))


def measure(contender: Contender, length: int, device: torch.device, dtype: torch.dtype) -> float | None:
    """Measure peak MiB of forward and backward; None, with a message, for a backend that cannot run."""
    tensors = make_problem(length).make_tensors(device, dtype)
    grad = torch.randn_like(tensors[0])

    def forward_backward() -> None:
        torch.autograd.grad(contender.build()(*tensors), tensors, grad)

    try:
        forward_backward()  # plans and compiled kernels, which are made once, do not count
        return peak_bytes(forward_backward, device) / 2**20
    except Exception as failure:
        print(f"{contender.name} cannot run {length}x{length}: {first_line(failure)}", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(run(main))
