"""Measure Terminator beside a plain transcription of its equations, in inference and in training.

    python -m kernels.bench.terminator --device cpu

Both networks have the same parameters and 10 classes. Logits and the gradients of all parameters must agree in
training and at evaluation before anything is timed. The transcription computes every map and every product by itself on
NCHW maps, as the released network did. Training is forward, backward and an AdamW step. "default" makes local kernels
from each image, "compat" from the mean of the batch.
"""

from __future__ import annotations

import copy
import sys

import timm
import torch
from torch import Tensor, nn

import visionattn.models.terminator  # noqa: F401  (registers the models)
from kernels.bench.gathered import TOLERANCE, inference_step, training_step
from kernels.bench.measure import time_in_turn
from kernels.bench.peers import OURS
from kernels.bench.report import Report, package_version
from kernels.bench.script import DTYPES, choose, new_parser, prepare, run
from kernels.bench.terminator_reference import PlainTerminator

COLUMNS = ("dtype", "model", "mode", "batch", "direction", "contender", "version", "median_ms", "ratio_to_ours")
MODES = ("default", "compat")
PLAIN = "transcription"


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if all results agree."""
    parser = new_parser(__doc__, "float32")
    parser.add_argument("--modes", help=f"of {', '.join(MODES)}, separated by commas (default: both)")
    parser.add_argument("--batch", type=int, default=16, help="images per step (default: 16)")
    args = parser.parse_args(argv)
    device = prepare(args, "terminator")
    (dtype,) = choose("--dtype", args.dtype or "float32", DTYPES)
    modes = choose("--modes", args.modes or ",".join(MODES), MODES)
    name, batch = ("terminator_pico", 2) if args.quick else ("terminator", args.batch)
    report = Report(args.output, device, COLUMNS)
    wrong = False
    for mode in modes:
        # Without dropout, of which no two networks draw the same.
        model = timm.create_model(name, paper_compat=mode == "compat", proj_drop_rate=0.0).to(device)
        images = torch.randn(batch, *model.default_cfg["input_size"], device=device)
        error = max(disagreement(model, images, training) for training in (True, False))
        if not error <= TOLERANCE:
            print(f"error: {name} ({mode}) differs by {error:.2g} (bound {TOLERANCE}): not timed", file=sys.stderr)
            wrong = True
            continue
        for direction, make_step in (("inference", inference_step), ("training", training_step)):
            contenders = {OURS: copy.deepcopy(model), PLAIN: PlainTerminator(copy.deepcopy(model))}
            steps = {key: make_step(net, images, DTYPES[dtype], False) for key, net in contenders.items()}
            medians = time_in_turn(steps, device, args.repeats)
            common = {"dtype": dtype, "model": name, "mode": mode, "batch": batch, "direction": direction}
            report.add(
                {
                    **common,
                    "contender": key,
                    "version": package_version("visionattn") if key == OURS else torch.__version__,
                    "median_ms": median,
                    "ratio_to_ours": median / medians[OURS],
                }
                for key, median in medians.items()
            )
            ours, plain = medians[OURS], medians[PLAIN]
            what = f"{name} B{batch}, {mode}, {direction}"
            print(f"{what}: {ours:.1f} ms, transcription {plain:.1f} ms ({plain / ours:.2f}x)", flush=True)
    if args.output:
        print(f"wrote {args.output}")
    return int(wrong)


def disagreement(model: nn.Module, images: Tensor, training: bool) -> float:
    """Return the largest difference of logits and gradients of two images in float64, each over the largest entry."""
    results = []
    for make in (lambda net: net, PlainTerminator):
        net = make(copy.deepcopy(model).double()).train(training)
        logits = net(images[:2].double())
        upstream = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype, device=logits.device).view(logits.shape)
        results.append([logits, *torch.autograd.grad(logits, list(net.parameters()), upstream)])
    scales = [max(float(x.detach().abs().max()) for x in group) for group in (results[1][:1], results[1][1:])]
    differences = [float((a - b).detach().abs().max()) for a, b in zip(*results, strict=True)]
    return max(differences[0] / scales[0], max(differences[1:]) / scales[1])


if __name__ == "__main__":
    sys.exit(run(main))
