"""Measure images per second of whole models, in inference and in training, NAT and DiNAT beside twins on gathered keys.

    python -m kernels.bench.gathered --device cuda --models nat_tiny,dinat_tiny,halo_h1 --batch 128 --dtype bfloat16
    python -m kernels.bench.gathered --device cuda --models nat_tiny --compile --alone

A twin has the same weights and must give the same logits in float32 before anything is timed. HaloNet has no twin
(halonet.py compares it with timm's), nor has DCAL, which trains all of its branches. Inference runs in --dtype
throughout; training (forward, backward, AdamW) keeps float32 weights under autocast, without loss scaling.
"""

from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Callable
from itertools import product
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visionattn  # noqa: F401  (registers the models)
from kernels.bench.measure import peak_bytes, time_in_turn
from kernels.bench.peers import OURS, gather
from kernels.bench.report import Report, package_version, published
from kernels.bench.script import DTYPES, choose, first_line, new_parser, prepare, run
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d, largest_dilation
from visionattn.layers.prepared import Prepared
from visionattn.training.branches import branch_logits, compile_branches
from visionattn_kernels import Window

COLUMNS = (
    *("dtype", "compile", "channels_last", "model", "batch", "direction", "contender", "version"),
    *("median_ms", "images_per_second", "ratio_to_ours", "peak_mb"),
)
PUBLISHED = ("nat_mini", "nat_tiny", "nat_small", "nat_base", "dinat_tiny", "dinat_base")
OTHERS = ("halo_h1", "dcal_deit_small_patch16_224")
MODELS = {"cpu": ("nat_tiny", "dinat_tiny"), "cuda": (*PUBLISHED, *OTHERS)}
BATCH = {"cpu": 4, "cuda": 128}
TOLERANCE = 1e-3


class GatheredAttention2d(NeighborhoodAttention2d):
    """The layer in plain torch, which gathers a copy of the keys for every query."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, H, W, dim]` to the same."""
        size, kernel_size = (x.shape[1], x.shape[2]), self.kernel_size
        dilation = self.dilation or (largest_dilation(size[0], kernel_size), largest_dilation(size[1], kernel_size))
        attend = gather(Window.create(kernel_size, dilation=dilation), size, x.device)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(3)
        rpb = () if self.rpb is None else (self.rpb,)
        return self.proj_drop(self.proj(attend(q, k, v, *rpb).flatten(-2)))


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if the logits of all models agree."""
    parser = new_parser(__doc__, "float32 on cpu, bfloat16 on cuda")
    known = {device: ",".join(names) for device, names in MODELS.items()}
    parser.add_argument(
        "--models", help=f"names, separated by commas (default: {known['cpu']}; on cuda {known['cuda']})"
    )
    parser.add_argument("--batch", type=int, help="images per step (4 on cpu, 128 on cuda)")
    parser.add_argument("--compile", action="store_true", help="measure the models also under torch.compile")
    parser.add_argument("--alone", action="store_true", help="without the twins on gathered keys")
    parser.add_argument("--channels-last", action="store_true", help="images and weights in that memory format")
    args = parser.parse_args(argv)
    device = prepare(args, "gathered")
    dtypes = choose("--dtype", args.dtype or ("float32" if args.device == "cpu" else "bfloat16"), DTYPES)
    names = args.models or ("nat_pico" if args.quick else known[args.device])
    models = choose("--models", names, timm.list_models(["nat_*", "dinat_*", "halo_*", "dcal_*"]))
    batch = args.batch or (2 if args.quick else BATCH[args.device])
    report = Report(args.output, device, COLUMNS)
    wrong = False
    # All inference comes first: training leaves a heap in which later inference needs no fresh pages.
    for direction, make_step in (("inference", inference_step), ("training", training_step)):
        for name in models:
            contenders, images = make_contenders(name, batch, device, args.channels_last, args.alone)
            error = disagreement(contenders, images)
            if not error <= TOLERANCE:
                print(f"error: logits of {name} differ by {error:.2g} (bound {TOLERANCE}): not timed", file=sys.stderr)
                wrong = True
                continue
            for dtype, compiled in product(dtypes, (False, True) if args.compile else (False,)):
                torch.compiler.reset()  # so that no model counts against the limit of compiled versions of another
                steps = {
                    key: make_step(copy.deepcopy(model), images, DTYPES[dtype], compiled)
                    for key, model in contenders.items()
                }
                try:
                    rows = compare(steps, batch, device, args.repeats)
                except Exception as failure:  # the other models are measured all the same
                    traceback.print_exc()
                    print(f"error: {name}, {direction}, fails: {first_line(failure)}", file=sys.stderr)
                    wrong = True
                    continue
                settings = {"dtype": dtype, "compile": compiled, "channels_last": args.channels_last}
                report.add({**settings, "model": name, "batch": batch, "direction": direction, **row} for row in rows)
                show(f"{name} B{batch}", direction, f"{dtype}, compiled" if compiled else dtype, rows)
    if args.output:
        print(f"wrote {args.output}")
    return int(wrong)


def make_contenders(
    name: str, batch: int, device: torch.device, channels_last: bool, alone: bool
) -> tuple[dict[str, nn.Module], Tensor]:
    """Return the model, its twin on gathered keys unless `alone` or nothing is gathered, and images."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    ours: nn.Module = timm.create_model(name).to(device).to(memory_format=layout)
    images = torch.randn(batch, *ours.default_cfg["input_size"], device=device)  # type: ignore[index]
    contenders = {OURS: ours}
    if not alone and any(isinstance(module, NeighborhoodAttention2d) for module in ours.modules()):
        contenders["gather"] = copy.deepcopy(ours)
        for module in contenders["gather"].modules():
            if isinstance(module, NeighborhoodAttention2d):
                module.__class__ = GatheredAttention2d
    return contenders, images.contiguous(memory_format=layout)


def disagreement(contenders: dict[str, nn.Module], images: Tensor) -> float:
    """Return the largest difference of two images' float32 logits, relative to the largest logit; 0 without a twin."""
    with torch.no_grad():
        ours, *twins = (model.eval()(images[:2]) for model in contenders.values())
    return max((float((ours - twin).abs().max() / twin.abs().max()) for twin in twins), default=0.0)


def inference_step(model: nn.Module, images: Tensor, dtype: torch.dtype, compiled: bool) -> Callable[[], None]:
    """Return a step that computes logits, in `dtype` throughout, with fixed weights."""
    model = model.eval().to(dtype)
    images = images.to(dtype)
    if compiled:
        model.compile()
    for module in model.modules():
        if isinstance(module, Prepared):
            module.keep()

    def step() -> None:
        with torch.inference_mode():
            model(images)

    return step


def training_step(model: nn.Module, images: Tensor, dtype: torch.dtype, compiled: bool) -> Callable[[], None]:
    """Return a step of forward, backward and AdamW with float32 weights, cast to `dtype` where autocast does.

    The loss is the sum over the branches of the model.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    if compiled:
        model.compile()
        compile_branches(model)

    def step() -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            losses = [F.cross_entropy(logits, labels) for logits in branch_logits(model, images).values()]
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(
    steps: dict[str, Callable[[], None]], batch: int, device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    """Time the steps in turn; a twin that does not fit in memory is left out."""
    able = {}
    for name, step in steps.items():
        try:
            step()
            able[name] = step
        except torch.OutOfMemoryError:
            if name == OURS:
                raise
            print(f"{name} does not fit in memory; lower --batch", file=sys.stderr)
    medians = time_in_turn(able, device, repeats)
    return [
        {
            "contender": name,
            "version": package_version("visionattn") if name == OURS else torch.__version__,
            "median_ms": median,
            "images_per_second": batch / median * 1e3,
            "ratio_to_ours": median / medians[OURS],
            "peak_mb": peak_bytes(able[name], device) / 2**20,
        }
        for name, median in medians.items()
    ]


def show(problem: str, direction: str, dtype: str, rows: list[dict[str, Any]]) -> None:
    """Print the measurements and, separately, published figures."""
    print(f"{problem}, {direction}, {dtype}")
    for row in rows:
        speed = f"{row['images_per_second']:10.1f} img/s {row['ratio_to_ours']:8.2f}x"
        print(f"  {row['contender']:12} {row['version']:14} {speed} {row['peak_mb']:10.1f} MiB", flush=True)
    for row in published(problem, direction):
        where = f"{row['hardware']}, {row['dtype']}"
        print(f"  published: {row['contender']} {row['value']} {row['unit']} on {where} ({row['source']})")


if __name__ == "__main__":
    sys.exit(run(main))
