"""Measure the training of many probing heads at many learning rates: all at once, and one after another.

    python -m kernels.bench.probing_joint --device cpu

All train the same heads on the same images in the same order, tokens of a ViT of width 192 with 64 patches and a
class token, from a memory-mapped cache, and evaluate them after each epoch on the part that is held out. Weights and
held-out accuracies must agree in float64 before anything is timed. "plain loop" is what one would write for a single
head: its module, torch's AdamW, its own pass over the cache. "singly" is this library's training of one candidate at a
time.

The fewer queries heads have, the more there is to gain: with few, a head alone waits for memory and for Python, with
many, for arithmetic, which stays the same.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bench.measure import time_in_turn
from kernels.bench.peers import OURS
from kernels.bench.report import Report, package_version
from kernels.bench.script import choose, new_parser, prepare, run
from visionattn.probing.features.cache import Field, ShardedArrays
from visionattn.probing.features.extraction import FeatureCache
from visionattn.probing.features.sources import CachedFeatures, FeatureSource
from visionattn.probing.frozen import TokenLayout
from visionattn.probing.heads import ProbingHead, create_head, select_tokens
from visionattn.probing.protocols.candidates import ADAMW_LRS, Candidate, Recipe, sweep
from visionattn.probing.protocols.joint import JointTraining
from visionattn.probing.protocols.split import hold_out, random_order

COLUMNS = (
    *("heads", "rates", "epochs", "images", "tokens", "dim", "batch"),
    *("contender", "version", "median_ms", "ratio_to_ours"),
)
HEADS = ("ep_1", "ep_2", "ep_3", "ep_4", "ep_6", "ep_8", "aim_3", "aim_6")
"""EP by its queries and AIM by its heads. At width 192, 8 queries and 3 heads have as many channels each as 32 queries
and 12 heads have at the width of ViT-Base."""
LARGER = ("ep_12", "ep_16", "ep_32", "aim_12", "aim_16")
PLAIN, SINGLY = "plain loop", "singly"
NUM_CLASSES = 10
TOLERANCE = 1e-10


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if all results agree."""
    parser = new_parser(__doc__, "float32")
    known = ", ".join((*HEADS, *LARGER))
    parser.add_argument("--heads", default=",".join(HEADS), help=f"of {known}; separated by commas (default: eight)")
    parser.add_argument("--contenders", default=f"{PLAIN},{SINGLY}", help="beside ours, separated by commas")
    parser.add_argument("--images", type=int, default=5000, help="in the cache (default: 5000)")
    parser.add_argument("--epochs", type=int, default=2, help="of each training (default: 2)")
    parser.add_argument("--batch", type=int, default=256, help="images per step (default: 256)")
    args = parser.parse_args(argv)
    device = prepare(args, "probing-joint")
    choose("--dtype", args.dtype or "float32", ("float32",))
    names, others = (
        choose("--heads", args.heads, (*HEADS, *LARGER)),
        choose("--contenders", args.contenders, (PLAIN, SINGLY)),
    )
    layout, images, batch = TokenLayout(192, (8, 8), 1), args.images, args.batch
    if args.quick:
        layout, images, batch = TokenLayout(24, (3, 3), 1), 120, 32
    candidates = sweep([_head(name) for name in names], ADAMW_LRS)
    recipe = Recipe(epochs=args.epochs, batch_size=batch)
    report = Report(args.output, device, COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        features = make_features(Path(folder), layout, images)
        few = make_features(Path(folder) / "few", layout, 150)
        error = disagreement(few, candidates, replace(recipe, batch_size=32), device)
        if not error <= TOLERANCE:
            print(f"error: {args.heads} differ by {error:.2g} (bound {TOLERANCE}): not timed", file=sys.stderr)
            return 1
        contenders = {
            OURS: lambda: JointTraining(features, features, candidates, NUM_CLASSES, recipe, device).fit(),
            PLAIN: lambda: [train_alone(features, each, recipe, device) for each in candidates],
            SINGLY: lambda: [
                JointTraining(features, features, [each], NUM_CLASSES, recipe, device).fit() for each in candidates
            ],
        }
        medians = time_in_turn({key: contenders[key] for key in (OURS, *others)}, device, args.repeats)
    problem = {"heads": ",".join(names), "rates": len(ADAMW_LRS), "epochs": args.epochs, "images": images}
    report.add(
        {
            **problem,
            "batch": batch,
            "tokens": layout.num_tokens,
            "dim": layout.dim,
            "contender": key,
            "version": torch.__version__ if key == PLAIN else package_version("visionattn"),
            "median_ms": median,
            "ratio_to_ours": median / medians[OURS],
        }
        for key, median in medians.items()
    )
    what = f"{len(names)} heads × {len(ADAMW_LRS)} rates, {args.epochs} epochs of {images} images"
    print(f"{what}: {medians[OURS] / 1e3:.2f} s")
    for key in others:
        print(f"  {key}: {medians[key] / 1e3:.2f} s ({medians[key] / medians[OURS]:.2f}x)", flush=True)
    if args.output:
        print(f"wrote {args.output}")
    return 0


def make_features(folder: Path, layout: TokenLayout, images: int) -> FeatureSource:
    """Make a cache of random tokens in float16, with the layout of a backbone's cache."""
    rng = np.random.default_rng(0)
    fields = {"index": Field("int64"), "last.tokens": Field("float16", (layout.num_tokens, layout.dim))}
    arrays = ShardedArrays(folder, {}, fields, images)
    with arrays.only_writer():
        arrays.claim()
        for shard in range(arrays.num_shards):
            index = np.array(arrays.images(shard))
            tokens = rng.standard_normal((len(index), layout.num_tokens, layout.dim), dtype=np.float32)
            tokens[:, :, :NUM_CLASSES] += np.eye(NUM_CLASSES)[index % NUM_CLASSES][:, None]
            arrays.write(0, shard, {"index": index, "last.tokens": tokens.astype(np.float16)})
    targets = [number % NUM_CLASSES for number in range(images)]
    return CachedFeatures(FeatureCache(arrays, {"last": layout}, 1, targets))


def train_alone(
    source: FeatureSource,
    candidate: Candidate,
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[ProbingHead, float]:
    """Return a head after all epochs, and its best accuracy on the held-out part."""
    fitted, judged = hold_out(source.targets, recipe.held_out, recipe.seed)
    steps = math.ceil(len(fitted) / recipe.batch_size)
    warmup, total = int(steps * min(recipe.warmup_epochs, recipe.epochs / 4)), steps * recipe.epochs
    torch.manual_seed(recipe.seed)
    head = create_head(candidate.head, source.dim, NUM_CLASSES, **candidate.options).to(device, dtype)
    optimizer = torch.optim.AdamW(head.parameters(), lr=candidate.lr, weight_decay=candidate.weight_decay)

    def rate(step: int) -> float:
        return step / warmup if step < warmup else 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (total - warmup))

    def batches(indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for tokens, places in source.batches(indices, recipe.batch_size):
            tokens = select_tokens(tokens.to(device, dtype), head.tokens, source.num_prefix_tokens)
            yield tokens, source.targets[indices[places]].to(device)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    accuracies = []
    for epoch in range(recipe.epochs):
        head.train()
        for tokens, targets in batches(fitted[random_order(len(fitted), recipe.seed, epoch)]):
            F.cross_entropy(head(tokens), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        head.eval()
        with torch.no_grad():
            hits = sum(int((head(tokens).argmax(1) == targets).sum()) for tokens, targets in batches(judged))
        accuracies.append(hits / len(judged))
    return head, max(accuracies)


def disagreement(source: FeatureSource, candidates: Sequence[Candidate], recipe: Recipe, device: torch.device) -> float:
    """Return the largest difference of weights and accuracies between both ways, in float64."""
    training = JointTraining(source, source, candidates, NUM_CLASSES, recipe, device, torch.float64)
    training.fit()
    differences = [0.0]
    for each in training.trials:
        head, accuracy = train_alone(source, each.candidate, recipe, device, torch.float64)
        differences.append(abs(accuracy - each.best_accuracy))
        states = zip(head.state_dict().values(), each.head.state_dict().values(), strict=True)
        differences += [float((a - b).abs().max()) for a, b in states]
    return max(differences)


def _head(name: str) -> tuple[str, dict[str, int]]:
    kind, _, number = name.partition("_")
    return (kind, {"num_heads": int(number)}) if kind == "aim" else (name, {})


if __name__ == "__main__":
    sys.exit(run(main))
