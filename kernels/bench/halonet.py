"""Measure timm's halo networks before and after `accelerate`, layer by layer and whole, and HaloNet-H1 beside timm's.

    python -m kernels.bench.halonet --device cpu
    python -m kernels.bench.halonet --device cuda --models halonet26t

Layers run on what they are given in the network, at its own image size (256 pixels; 224 for haloregnetz_b); each must
give timm's output and gradients before it is timed, and each network timm's logits. The two H1 have the same number of
parameters, but not the same function: timm's attends to zeros beyond the border. Training is forward, backward and an
AdamW step. Rows named "projections" are the two projections of a layer alone, which every implementation computes.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from timm.layers.halo_attn import HaloAttn
from torch import Tensor, nn

from kernels.bench.gathered import TOLERANCE, disagreement, inference_step, training_step
from kernels.bench.measure import largest_error, time_in_turn
from kernels.bench.peers import OURS
from kernels.bench.report import Report, package_version
from kernels.bench.script import DTYPES, choose, new_parser, prepare, run
from visionattn import accelerate

COLUMNS = ("dtype", "model", "batch", "part", "direction", "contender", "version", "median_ms", "ratio_to_ours")
NETWORKS = ("halonet26t", "halonet50ts", "sehalonet33ts", "haloregnetz_b", "eca_halonext26ts")
PROJECTIONS = "projections"
Steps = dict[str, Callable[[], None]]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if all outputs agree."""
    parser = new_parser(__doc__, "float32 on cpu, bfloat16 on cuda")
    parser.add_argument("--models", help=f"timm's networks, separated by commas (default: {','.join(NETWORKS)})")
    parser.add_argument("--batch", type=int, help="images per step (default: 8, with --quick 2; H1: half of it)")
    args = parser.parse_args(argv)
    device = prepare(args, "halonet")
    dtypes = choose("--dtype", args.dtype or ("float32" if args.device == "cpu" else "bfloat16"), DTYPES)
    if len(dtypes) > 1:
        raise ValueError(f"--dtype takes one of {', '.join(DTYPES)} here; got {args.dtype}")
    (dtype,) = dtypes
    names = choose("--models", args.models or ("halonet26t" if args.quick else ",".join(NETWORKS)), NETWORKS)
    batch = args.batch or (2 if args.quick else 8)
    report = Report(args.output, device, COLUMNS)
    wrong = False
    for name in names:
        theirs, images = make_network(name, batch, device)
        for part, layer, x in distinct_layers(theirs, images):
            twin = accelerate(copy.deepcopy(layer))
            x_last = x.contiguous(memory_format=torch.channels_last)  # so the accelerated network hands it on
            if not agree(name, part, layer_disagreement(layer, twin, x)):
                wrong = True
                continue
            for direction, make_step in (("forward", forward_step), ("forward+backward", backward_step)):
                steps = {"timm": make_step(layer, x, DTYPES[dtype]), OURS: make_step(twin, x_last, DTYPES[dtype])}
                if direction == "forward":
                    steps[PROJECTIONS] = make_step(Projections(layer), x_last, DTYPES[dtype])
                measure(report, steps, name, batch, part, direction, dtype, device, args.repeats)
        contenders = {"timm": theirs, OURS: accelerate(copy.deepcopy(theirs))}
        if not agree(name, "network", disagreement(contenders, images)):
            wrong = True
            continue
        measure_networks(report, contenders, images, name, dtype, device, args.repeats)
    if not args.quick:
        images = torch.randn(max(1, batch // 2), 3, 256, 256, device=device)
        contenders = {"timm": timm.create_model("halonet_h1"), OURS: timm.create_model("halo_h1")}
        contenders = {name: model.to(device) for name, model in contenders.items()}
        measure_networks(report, contenders, images, "halo_h1", dtype, device, args.repeats)
    if args.output:
        print(f"wrote {args.output}")
    return int(wrong)


class Projections(nn.Module):
    """The projections of a layer to queries, and to keys and values."""

    def __init__(self, layer: HaloAttn) -> None:
        super().__init__()
        self.q, self.kv = layer.q, layer.kv

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries, and keys with values, of a map."""
        return self.q(x), self.kv(x)


def make_network(name: str, batch: int, device: torch.device) -> tuple[nn.Module, Tensor]:
    """Return a network of timm, in which no residual branch starts at zero, and images."""
    network: nn.Module = timm.create_model(name).to(device)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network, torch.randn(batch, *network.default_cfg["input_size"], device=device)  # type: ignore[index]


def distinct_layers(network: nn.Module, images: Tensor) -> Iterator[tuple[str, HaloAttn, Tensor]]:
    """Return the first attention layer of each shape: its name, the layer and its input."""
    found: list[tuple[str, HaloAttn, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda layer, args: found.append((name, layer, args[0].clone()))  # type: ignore[arg-type]

    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, HaloAttn)]
    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers]
    with torch.no_grad():
        network.eval()(images)
    for hook in hooks:
        hook.remove()
    seen = set()
    for name, layer, x in found:
        shape = (x.shape, layer.dim_out_v, layer.block_stride, layer.num_heads)
        if shape not in seen:
            seen.add(shape)
            yield f"{name} {'x'.join(map(str, x.shape[1:]))} stride {layer.block_stride}", layer, x


def layer_disagreement(layer: nn.Module, twin: nn.Module, x: Tensor) -> float:
    """Return the largest difference of outputs and gradients, each relative to the largest entry."""
    results = []
    for module in (layer, twin):
        given = x.clone().requires_grad_()
        out = module(given)
        upstream = torch.linspace(-1, 1, out.numel(), device=x.device).view(out.shape)
        results.append([out, *torch.autograd.grad(out, [given, *module.parameters()], upstream)])
    return largest_error(*reversed(results))


def agree(name: str, part: str, error: float) -> bool:
    """Return whether an error is within bounds; print a message if it is not."""
    if error <= TOLERANCE:
        return True
    print(f"error: {part} of {name} differs by {error:.2g} (bound {TOLERANCE}): not timed", file=sys.stderr)
    return False


def forward_step(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Return a step that runs the layer without autograd."""
    layer, x = copy.deepcopy(layer).to(dtype), x.to(dtype)

    def step() -> None:
        with torch.inference_mode():
            layer(x)

    return step


def backward_step(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Return a step that runs the layer and computes the gradients of its input and parameters."""
    layer, x = copy.deepcopy(layer).to(dtype), x.to(dtype).detach().requires_grad_()
    inputs = [x, *layer.parameters()]
    upstream = torch.randn_like(layer(x))

    def step() -> None:
        torch.autograd.grad(layer(x), inputs, upstream)

    return step


def measure_networks(
    report: Report,
    contenders: dict[str, nn.Module],
    images: Tensor,
    name: str,
    dtype: str,
    device: torch.device,
    repeats: int,
) -> None:
    """Time inference and training of both networks."""
    for direction, make_step in (("inference", inference_step), ("training", training_step)):
        steps = {
            key: make_step(copy.deepcopy(model), images, DTYPES[dtype], False) for key, model in contenders.items()
        }
        measure(report, steps, name, len(images), "network", direction, dtype, device, repeats)


def measure(
    report: Report,
    steps: Steps,
    model: str,
    batch: int,
    part: str,
    direction: str,
    dtype: str,
    device: torch.device,
    repeats: int,
) -> None:
    """Time both contenders in turn, print and report."""
    medians = time_in_turn(steps, device, repeats)
    common: dict[str, Any] = {"dtype": dtype, "model": model, "batch": batch, "part": part, "direction": direction}
    report.add(
        {
            **common,
            "contender": name,
            "version": package_version("timm" if name == "timm" else "visionattn"),
            "median_ms": median,
            "ratio_to_ours": median / medians[OURS],
        }
        for name, median in medians.items()
    )
    ours, theirs = medians[OURS], medians["timm"]
    print(
        f"{model} B{batch}, {part}, {direction}: {ours:.1f} ms, timm {theirs:.1f} ms ({theirs / ours:.2f}x)", flush=True
    )


if __name__ == "__main__":
    sys.exit(run(main))
