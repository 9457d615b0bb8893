"""Measure linear layers on maps on CPUs: a matrix product (in torch, of MKL) beside a 1x1 convolution (of oneDNN).

    python -m kernels.bench.pointwise --device cpu --dtype float32,bfloat16

Shapes are those of the small models' layers. Results are first compared with float64. They decide between the two in
`visionattn.layers.pointwise.linear_on_map`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bench.measure import largest_error, time_in_turn
from kernels.bench.report import Report, geometric_mean
from kernels.bench.script import DTYPES, choose, new_parser, prepare, run

COLUMNS = (
    "dtype",
    "batch",
    "edge",
    "in",
    "out",
    "direction",
    "contender",
    "median_ms",
    "gflops",
    "ratio_to_convolution",
)
SHAPES = (
    *((32, 16, 48, 144), (32, 16, 48, 96), (32, 16, 96, 48), (32, 8, 96, 288), (32, 8, 192, 96), (32, 4, 192, 576)),
    *((4, 56, 64, 192), (4, 28, 128, 384), (4, 14, 256, 768), (4, 14, 768, 256)),
)
"""Images, edge, channels of input and output: of nat_pico and of nat_tiny."""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.02}
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if all results are accurate."""
    parser = new_parser(__doc__, "float32")
    args = parser.parse_args(argv)
    device = prepare(args, "pointwise")
    report = Report(args.output, device, COLUMNS)
    for dtype in choose("--dtype", args.dtype or "float32", DTYPES):
        ratios: dict[str, list[float]] = {"forward": [], "forward+backward": []}
        for shape in SHAPES[5:6] if args.quick else SHAPES:
            tensors = draw(shape, DTYPES[dtype], device)
            expected = step(product, [x.detach().double().requires_grad_() for x in tensors], "forward+backward")
            for layer in LAYERS.values():
                error = largest_error(step(layer, tensors, "forward+backward"), expected)
                if not error <= TOLERANCE[DTYPES[dtype]]:
                    print(f"error: {layer.__name__} in {dtype} differs from float64 by {error:.2g}", file=sys.stderr)
                    return 1
            for direction, found in ratios.items():
                runs = {name: partial(step, layer, tensors, direction) for name, layer in LAYERS.items()}
                medians = time_in_turn(runs, device, args.repeats)
                found.append(medians["product"] / medians["convolution"])
                flops = 2 * math.prod(shape) * shape[1] * (1 if direction == "forward" else 3)
                report.add(
                    {
                        "dtype": dtype,
                        **dict(zip(("batch", "edge", "in", "out"), shape, strict=True)),
                        "direction": direction,
                        "contender": name,
                        "median_ms": median,
                        "gflops": flops / median / 1e6,
                        "ratio_to_convolution": median / medians["convolution"],
                    }
                    for name, median in medians.items()
                )
        for direction, found in ratios.items():
            print(f"{dtype}, {direction}: the product takes {geometric_mean(found):.2f}x as long as the convolution")
    if args.output:
        print(f"wrote {args.output}")
    return 0


def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Map `[B, H, W, in]` to `[B, H, W, out]` by a matrix product."""
    return F.linear(x, weight, bias)


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute the same by a 1x1 convolution in channels-last memory."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


LAYERS: dict[str, Layer] = {"product": product, "convolution": convolution}


def draw(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Draw a map, weight, bias, and the gradient of the output."""
    batch, edge, channels, width = shape
    shapes = ((batch, edge, edge, channels), (width, channels), (width,), (batch, edge, edge, width))
    return [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for shape in shapes]


def step(layer: Layer, tensors: list[Tensor], direction: str) -> list[Tensor]:
    """Return the output and, with the backward pass, all gradients."""
    *leaves, gradient = tensors
    with torch.set_grad_enabled(direction != "forward"):
        out = layer(*leaves)
    return [out, *(torch.autograd.grad(out, leaves, gradient.detach()) if direction != "forward" else ())]


if __name__ == "__main__":
    sys.exit(run(main))
