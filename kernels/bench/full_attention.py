"""Measure attention of all tokens to all tokens on CPUs: torch's fused operator beside plain operators.

    python -m kernels.bench.full_attention --device cpu --dtype float32,bfloat16

Both are `visionattn.layers.full_attention.attend`. Outputs and gradients are first compared with float64. The result
decides `fused_is_fast`.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from torch import Tensor

from kernels.bench.measure import largest_error, time_in_turn
from kernels.bench.report import Report
from kernels.bench.script import DTYPES, choose, new_parser, prepare, run
from visionattn.layers.full_attention import attend

COLUMNS = ("dtype", "batch", "heads", "tokens", "head_dim", "direction", "contender", "median_ms", "ratio_to_plain")
SHAPES = ((32, 3, 65, 64), (32, 4, 65, 32), (32, 2, 64, 32), (8, 3, 197, 64), (8, 6, 257, 64), (2, 6, 785, 64))
"""Images, heads, tokens, channels of a head: of the small models at 32 pixels, and of ViT-T to ViT-S at 224 and 448."""
TOLERANCE = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if all results are accurate."""
    parser = new_parser(__doc__, "float32,bfloat16")
    args = parser.parse_args(argv)
    device = prepare(args, "full-attention")
    report = Report(args.output, device, COLUMNS)
    wrong = False
    for dtype in choose("--dtype", args.dtype or "float32,bfloat16", DTYPES):
        for shape in SHAPES[2:3] if args.quick else SHAPES:
            tensors = draw(shape, DTYPES[dtype], device)
            errors = {fused: error(tensors, fused) for fused in (True, False)}
            if not max(errors.values()) <= TOLERANCE[DTYPES[dtype]]:
                print(f"error: {dtype} {shape}: results differ from float64 by {errors}: not timed", file=sys.stderr)
                wrong = True
                continue
            for direction in ("forward", "forward+backward"):
                runs = {name: partial(step, tensors, name == "fused", direction) for name in ("plain", "fused")}
                medians = time_in_turn(runs, device, args.repeats)
                problem = dict(zip(("batch", "heads", "tokens", "head_dim"), shape, strict=True))
                report.add(
                    {
                        "dtype": dtype,
                        **problem,
                        "direction": direction,
                        "contender": name,
                        "median_ms": median,
                        "ratio_to_plain": median / medians["plain"],
                    }
                    for name, median in medians.items()
                )
                ratio = medians["fused"] / medians["plain"]
                print(f"{dtype} {shape} {direction}: plain {medians['plain']:.2f} ms, fused {ratio:.2f}x", flush=True)
    if args.output:
        print(f"wrote {args.output}")
    return int(wrong)


def draw(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Draw queries, keys, values, which lie in memory as one projection leaves them, and a gradient."""
    batch, heads, tokens, head_dim = shape
    packed = torch.randn(3, batch, tokens, heads, head_dim, device=device, dtype=dtype)
    leaves = [x.transpose(1, 2).requires_grad_() for x in packed]
    return [*leaves, torch.randn(batch, heads, tokens, head_dim, device=device, dtype=dtype)]


def step(tensors: list[Tensor], fused: bool, direction: str) -> list[Tensor]:
    """Return the output and, with the backward pass, the gradients."""
    *leaves, gradient = tensors
    with torch.set_grad_enabled(direction != "forward"):
        out = attend(*leaves, fused=fused)
    return [out, *(torch.autograd.grad(out, leaves, gradient) if direction != "forward" else ())]


def error(tensors: list[Tensor], fused: bool) -> float:
    """Return the largest error of output and gradients, relative to the largest entry."""
    exact = [x.detach().double() for x in tensors]
    expected = step([*(x.requires_grad_() for x in exact[:3]), exact[3]], False, "forward+backward")
    return largest_error((x.double() for x in step(tensors, fused, "forward+backward")), expected)


if __name__ == "__main__":
    sys.exit(run(main))
