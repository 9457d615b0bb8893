"""Measure the cost of probes for object binding beside the backbone whose layers they read.

    python -m kernels.bench.binding --device cpu --threads 1

Timed are, on one batch, the forward pass of ViT-S with 12 layers and 196 patches, one training step of all probes of
all layers on what it gives, and their evaluation; and the same for the quadratic probe alone. Scores of the probes
must agree with formulas for single pairs in float64 before anything is timed. Peak memory is that of a forward pass
with a training step or evaluation, for ViT-B with batches of 16: of tensors, beside those that stay, and on a CPU also
the most that the whole process ever had resident.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import timm
import torch
from torch import Tensor

from kernels.bench.measure import peak_bytes, time_in_turn
from kernels.bench.report import Report, package_version
from kernels.bench.script import choose, new_parser, prepare, run
from visionattn.objects.binding import BindingProbes
from visionattn.objects.probes import DiagonalProbe, LinearProbe, PairProbe, QuadraticProbe
from visionattn.probing.frozen import FrozenBackbone

COLUMNS = (
    *("dtype", "model", "layers", "patches", "dim", "batch", "probes", "direction"),
    *("version", "median_ms", "ratio_to_backbone", "peak_mb", "process_mb"),
)
ALL = ("quadratic", "diagonal", "linear", "class", "identity", "cosine", "dot")
TIMED, MEASURED = "vit_small_patch16_224", "vit_base_patch16_224"
NUM_CLASSES, NUM_SEGMENTS = 133, 11  # as in COCO panoptic, segments of an image on average
TOLERANCE = 1e-10


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if scores agree."""
    parser = new_parser(__doc__, "float32")
    parser.add_argument("--batch", type=int, default=16, help="images per step (default: 16)")
    args = parser.parse_args(argv)
    device = prepare(args, "binding")
    choose("--dtype", args.dtype or "float32", ("float32",))
    error = disagreement()
    if not error <= TOLERANCE:
        print(f"error: scores differ by {error:.2g} (bound {TOLERANCE}): not timed", file=sys.stderr)
        return 1
    report = Report(args.output, device, COLUMNS)
    timed, measured, batch = ("test_vit", "test_vit", 2) if args.quick else (TIMED, MEASURED, args.batch)
    # Memory first: what a process had resident at most can only grow.
    measure_memory(report, Step(measured, ALL, batch, device))
    measure_time(report, [Step(timed, probes, batch, device) for probes in (ALL, ALL[:1])], args.repeats)
    if args.output:
        print(f"wrote {args.output}")
    return 0


class Step:
    """A backbone, probes on all of its layers, and one batch for them."""

    def __init__(self, model: str, probes: Sequence[str], batch: int, device: torch.device) -> None:
        self.device = device
        self.backbone = FrozenBackbone(
            timm.create_model(model, num_classes=0).to(device), model, None, norm_blocks=False
        )
        self.probes = BindingProbes(self.backbone.layouts, probes, NUM_CLASSES, device=device)
        size = self.backbone.preprocessing["input_size"]
        self.images = torch.randn(batch, *size, device=device)
        self.scenes = make_scenes(batch, size[1], device)
        rows, columns = self.backbone.layouts[0].grid
        self.problem = {
            "dtype": "float32",
            "model": model,
            "layers": self.backbone.depth,
            "patches": rows * columns,
            "dim": self.backbone.layouts[0].dim,
            "batch": batch,
            "probes": ",".join(probes),
            "version": package_version("visionattn"),
        }

    def train(self) -> None:
        """Run a forward pass and a training step."""
        self.probes.train_step(self.backbone(self.images), self.scenes)

    def evaluate(self) -> None:
        """Run a forward pass and an evaluation."""
        self.probes.evaluate_step(self.backbone(self.images), self.scenes)


def measure_time(report: Report, steps: Sequence[Step], repeats: int) -> None:
    """Add the times of forward pass, training step and evaluation."""
    features = steps[0].backbone(steps[0].images)
    runs = {("", "forward"): lambda: steps[0].backbone(steps[0].images)}
    for step in steps:
        names = step.problem["probes"]
        runs |= {
            (names, "training"): lambda step=step: step.probes.train_step(features, step.scenes),
            (names, "evaluation"): lambda step=step: step.probes.evaluate_step(features, step.scenes),
        }
    medians = time_in_turn(runs, steps[0].device, repeats)
    forward = medians["", "forward"]
    for (names, direction), median in medians.items():
        problem = {**steps[0].problem, "probes": names, "direction": direction}
        report.add([{**problem, "median_ms": median, "ratio_to_backbone": median / forward}])
        print(f"{problem['model']}, {direction} {names}: {median:.0f} ms ({median / forward:.2f}x)", flush=True)


def measure_memory(report: Report, step: Step) -> None:
    """Add the peak memory of a forward pass with a training step, and with evaluation."""
    for direction, work in (("training", step.train), ("evaluation", step.evaluate)):
        work()
        on_cpu = step.device.type == "cpu"
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if on_cpu else ""
        peak = peak_bytes(work, step.device) / 2**20
        report.add([{**step.problem, "direction": direction, "peak_mb": peak, "process_mb": process}])
        whole = f", process {process:.0f} MiB" if on_cpu else ""
        print(f"{step.problem['model']}, {direction}: tensors {peak:.0f} MiB{whole}", flush=True)


def make_scenes(batch: int, size: int, device: torch.device) -> SimpleNamespace:
    """Make overlapping rectangles with classes; half of the segments are objects."""
    segments = torch.ones(batch, size, size, dtype=torch.int64)
    for image in segments:
        for number in range(2, NUM_SEGMENTS + 1):
            top, left = torch.randint(0, 3 * size // 4, (2,)).tolist()
            height, width = torch.randint(size // 8, size // 2, (2,)).tolist()
            image[top : top + height, left : left + width] = number
    classes = torch.randint(0, NUM_CLASSES, (batch, NUM_SEGMENTS + 1))
    classes[:, 0] = -1
    things = (torch.arange(NUM_SEGMENTS + 1) > NUM_SEGMENTS // 2).expand(batch, -1)
    return SimpleNamespace(segments=segments.to(device), classes=classes.to(device), things=things.to(device))


def disagreement() -> float:
    """Return the largest difference of scores of two layers from those of single pairs, in float64."""
    x = torch.randn(2, 2, 5, 8, dtype=torch.float64)
    errors = []
    for probe in (LinearProbe(2, 8), DiagonalProbe(2, 8), QuadraticProbe(2, 8, rank=6)):
        for values in probe.double().parameters():
            torch.nn.init.normal_(values)
        scores = probe(x).detach()
        expected = [single_pair(probe, layer, a, b) for layer in range(2) for p in x[layer] for a in p for b in p]
        errors.append(float((scores.flatten() - torch.stack(expected).detach()).abs().max()))
    return max(errors)


def single_pair(probe: PairProbe, layer: int, x: Tensor, y: Tensor) -> Tensor:
    """Compute the formula of a probe for two tokens `[D]`."""
    w, b = (probe.get_parameter(name)[layer] for name in ("weight", "bias"))
    if isinstance(probe, QuadraticProbe):
        return x @ w.T @ torch.diag(probe.signs[layer]) @ w @ y + b
    return w @ x + w @ y + b if isinstance(probe, LinearProbe) else x @ torch.diag(w) @ y + b


if __name__ == "__main__":
    sys.exit(run(main))
