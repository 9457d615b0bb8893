"""Times windowed attention beside its peers, in one run, after checking that all compute the same.

    python kernels/bench/attention.py --device cpu --output attention.json

A row gives the median time of one contender and how many times faster this library is. A contender whose output is
not the reference's is not timed: the script says so and ends with status 1. Full attention computes another function of
the same maps and is timed as the price of doing without windows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers import Contender, ours, peers
from torch import Tensor

from visionattn_kernels import Window, windowed_attention
from visionattn_kernels.provenance import provenance

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
SLOW_MS = 400  # one run longer than this is repeated a few times only


@dataclass(frozen=True)
class Problem:
    """Shapes and window of one measurement."""

    name: str
    window: Window
    size: tuple[int, int]
    batch: int
    heads: int
    head_dim: int
    rpb: bool = False


def problems(batch: int, quick: bool) -> list[Problem]:
    """The stages of NAT-Tiny and DiNAT-Tiny at 224 pixels, with and without bias, and a HaloNet stage."""
    found = []
    for stage, (length, heads, dilation) in enumerate([(56, 2, 8), (28, 4, 4), (14, 8, 2), (7, 16, 1)], 1):
        for d in sorted({1, dilation}):
            for rpb in (False, True):
                name = f"nat-tiny-{stage} B{batch} {length}x{length} h{heads} c32 k7 d{d}{' rpb' if rpb else ''}"
                found.append(Problem(name, Window.create(7, dilation=d), (length, length), batch, heads, 32, rpb))
    halo = Window.create(14, 8, boundary="mask")
    found.append(Problem(f"halonet B{batch} 64x64 h4 c16 b8 h3", halo, (64, 64), batch, 4, 16))
    return found[:2] if quick else found


def main() -> int:
    """Runs the benchmark; the exit status tells whether all outputs were right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, help="pictures (4 on cpu, 128 on cuda)")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on cpu")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each contender")
    parser.add_argument("--quick", action="store_true", help="NAT-Tiny's first stage alone")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the rows")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda asks for a CUDA device and torch sees none; use --device cpu", file=sys.stderr)
        return 1
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    batch = args.batch or (4 if device.type == "cpu" else 128)

    rows: list[dict[str, Any]] = []
    wrong = False
    for problem in problems(batch, args.quick):
        contenders = [ours(problem.window), *peers(problem.window, problem.size, device)]
        contenders = [c for c in contenders if c.with_rpb or not problem.rpb]
        tensors = make_tensors(problem, device, dtype)
        verdicts = {c: is_right(c, problem, tensors) if c.same_function else True for c in contenders}
        right = [c for c in contenders if verdicts[c]]
        wrong |= False in verdicts.values()
        for direction in ("forward", "forward+backward"):
            able = [c for c in right if c.backward or direction == "forward"]
            rows += compare(problem, direction, able, tensors, args.repeats)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"rows": rows, **provenance(device)}, indent=1))
    print(f"wrote {args.output}")
    return int(wrong)


def make_tensors(problem: Problem, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q, k, v and, where the problem has one, rpb."""
    shape = (problem.batch, *problem.size, problem.heads, problem.head_dim)
    tensors = [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3)]
    if problem.rpb:
        table = (problem.heads, *(2 * k - 1 for k in problem.window.kernel_size))
        tensors.append(torch.randn(table, device=device, dtype=dtype).requires_grad_())
    return tuple(tensors)


def call(contender: Contender, tensors: tuple[Tensor, ...]) -> Tensor:
    """Output of a contender."""
    q, k, v, *rpb = tensors
    return contender.attend(q, k, v, rpb[0] if rpb else None)


def is_right(contender: Contender, problem: Problem, tensors: tuple[Tensor, ...]) -> bool | None:
    """Compares the output for the first picture with the reference in float64; None for a peer that cannot run."""
    first = tuple(x[:1].detach() if x.dim() == 5 else x.detach() for x in tensors)
    q, k, v, *rpb = (x.double() for x in first)
    expected = windowed_attention(q, k, v, problem.window, rpb=rpb[0] if rpb else None, backend="reference")
    assert isinstance(expected, Tensor)
    try:
        out = call(contender, tuple(x.detach() for x in tensors))[:1]
    except Exception as failure:
        if contender.name == "visionattn":
            raise
        reason = str(failure).strip().splitlines() or [type(failure).__name__]
        print(f"{contender.name} cannot run {problem.name}: {reason[0]}", file=sys.stderr)
        return None
    error = (out.double() - expected).abs().max().item()
    if not error <= TOLERANCE[tensors[0].dtype]:
        print(f"error: {contender.name} is off by {error:.3g} on {problem.name}: not timed", file=sys.stderr)
        return False
    return True


def compare(
    problem: Problem, direction: str, contenders: list[Contender], tensors: tuple[Tensor, ...], repeats: int
) -> list[dict[str, Any]]:
    """Times contenders in turn, so that what else the machine does falls on all of them."""
    grad = torch.randn(*tensors[0].shape[:-1], tensors[2].shape[-1], device=tensors[0].device, dtype=tensors[0].dtype)

    inputs = tuple(x.detach() for x in tensors)

    def run(contender: Contender) -> None:
        if direction == "forward":
            call(contender, inputs)
        else:
            torch.autograd.grad(call(contender, tensors), tensors, grad)

    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    for contender in contenders:
        run(contender)
    for repeat in range(repeats):
        for contender in contenders:
            slow = times[contender.name] and times[contender.name][0] > SLOW_MS
            if repeat < 3 or not slow:
                times[contender.name].append(measure(lambda c=contender: run(c), tensors[0].device))  # type: ignore[misc]
    medians = {name: statistics.median(found) for name, found in times.items()}
    rows = []
    print(f"{problem.name}, {direction}")
    for contender in contenders:
        median = medians[contender.name]
        speedup = median / medians["visionattn"]
        print(f"  {contender.name:12} {contender.version:14} {median:10.2f} ms   {speedup:8.2f}x")
        rows.append(
            {
                "problem": problem.name,
                "direction": direction,
                "contender": contender.name,
                "version": contender.version,
                "median_ms": round(median, 4),
                "speedup_of_ours": round(speedup, 3),
            }
        )
    return rows


def measure(run: Callable[[], None], device: torch.device) -> float:
    """Milliseconds of one run."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    sys.exit(main())
