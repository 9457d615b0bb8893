"""Measure training steps and inference of whole models, beside an earlier revision, timm's models and a lower bound.

    python -m kernels.bench.models --device cpu --threads 1
    python -m kernels.bench.models --device cpu --large --dtype float32,bfloat16
    python -m kernels.bench.models --earlier ENVIRONMENT/bin/python --checkout FOLDER --curve 200 --profile

--earlier takes the Python of an environment in which an earlier revision is installed; --earlier-dtype lets it compute
in a dtype of its own, such as its default. Every contender has a process of its own, which sleeps while another one
runs; steps are taken in turn, in random order. A training step is that of `train.py fit`: forward, cross-entropy (the
sum over branches), backward, AdamW. Inference is that of `eval.py classify`. Weights are float32, and autocast is on if
--dtype is not float32.

Before anything is timed in float32, both revisions get the same weights and batch, and must give the same gradients.
The fraction of the floor is a lower bound (model_costs.py) divided by the time. A model of timm stands beside the one
whose cost is like its own; multiply-accumulates are given for both.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

import visionattn  # noqa: F401  (registers the models)
from kernels.bench.measure import Rates, Run, time_in_turn
from kernels.bench.model_costs import count_costs, product_rates
from kernels.bench.model_process import REPOSITORY, ModelProcess, Revision
from kernels.bench.peers import EARLIER, OURS, TIMM
from kernels.bench.report import Report, geometric_mean, package_version
from kernels.bench.script import DTYPES, choose, new_parser, prepare, run

COLUMNS = (
    *("dtype", "model", "batch", "direction", "contender", "network", "version", "median_ms", "images_per_second"),
    *("ratio_to_ours", "gmacs", "parameters_m", "peak_mb", "fraction_of_floor"),
)
PROFILE_COLUMNS = ("dtype", "model", "batch", "contender", "kind", "share")
CURVE_COLUMNS = ("dtype", "model", "batch", "step", "loss", "earlier_loss")

SMALL = ("nat_pico", "dinat_pico", "halo_pico", "dcal_vit_nano", "terminator_pico", "resnet_pico", "vit_nano_patch4_32")
MODELS = {
    # No slot_cnn_pico: it is the encoder of object discovery, whose training is another one.
    False: (*SMALL, "iso_nano"),
    True: ("nat_tiny", "halo_h1", "dcal_deit_tiny_patch16_224", "terminator"),
}
BATCH = {False: 32, True: 4}
PEERS = {
    "nat_tiny": ("swin_tiny_patch4_window7_224", "convnext_tiny"),
    "halo_h1": ("halonet26t",),
    "dcal_deit_tiny_patch16_224": ("deit_tiny_patch16_224",),
}
DIRECTIONS = ("inference", "training")
TOLERANCE = 1e-4
NEGLIGIBLE = 1e-5
"""A gradient is compared with its largest entry, or with this fraction of the largest entry of all gradients."""

PROFILED_STEPS = 5
WINDOW = 20
"""Steps of a running mean of losses."""

REST_S = 0.005
"""Between two steps, so that the threads of the process before have gone to sleep."""


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if both revisions agree."""
    args = parse(argv)
    device = prepare(args, "models-large" if args.large else "models")
    dtypes = choose("--dtype", args.dtype or "float32", DTYPES)
    default = ("nat_pico",) if args.quick else MODELS[args.large]
    names = choose("--models", args.models or ",".join(default), timm.list_models())
    args.batch = args.batch or (2 if args.quick else BATCH[args.large])
    earlier = earlier_revision(args)
    report, profiles, curves = (
        Report(path, device, columns)
        for path, columns in (
            (args.output, COLUMNS),
            (sibling(args.output, "profile"), PROFILE_COLUMNS),
            (sibling(args.output, "curves"), CURVE_COLUMNS),
        )
    )
    for each in (report, profiles, curves):
        each.origin["command"] = without_paths(each.origin["command"], args)
    wrong = False
    for dtype in dtypes:
        rates = product_rates(device, DTYPES[dtype], args.quick)
        print(
            f"{dtype}: {rates.flops_per_second / 1e9:.0f} GFLOP/s, {rates.bytes_per_second / 1e9:.1f} GB/s", flush=True
        )
        for name in names:
            try:
                with ExitStack() as stack:
                    contenders = start(name, args, earlier, stack)
                    if EARLIER in contenders and args.check and (problem := compare(contenders, dtype)):
                        print(f"error: {name}: {problem}: the earlier revision is not timed", file=sys.stderr)
                        del contenders[EARLIER]
                        wrong = True
                    report.add(measure(name, dtype, contenders, rates, args, device))
                    show(report.rows, name, dtype)
                    if args.curve and EARLIER in contenders:
                        curves.add(train_both(name, dtype, contenders, args))
                    if args.profile:
                        profiles.add(profile(name, dtype, contenders, args))
            except ValueError as failure:  # the other models are measured all the same
                print(f"error: {failure}", file=sys.stderr)
                wrong = True
        show_means(report.rows, dtype)
    if args.output:
        print(f"wrote {args.output}")
    return int(wrong)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the arguments."""
    parser = new_parser(__doc__, "float32")
    for large, option in ((False, "by default"), (True, "with --large")):
        parser.epilog = f"{parser.epilog or ''}{option}: {', '.join(MODELS[large])}, batch {BATCH[large]}\n"
    parser.add_argument("--models", help="names, separated by commas (default: below)")
    parser.add_argument("--large", action="store_true", help="the large models, beside timm's")
    parser.add_argument("--batch", type=int, help="images per step (default: 32, with --large 4)")
    parser.add_argument("--earlier", metavar="PYTHON", help="executable of the environment of an earlier revision")
    parser.add_argument(
        "--checkout", metavar="FOLDER", type=Path, help="files of that revision, if not installed there"
    )
    parser.add_argument(
        "--earlier-dtype", choices=list(DTYPES), help="of the earlier revision, if it differs, as its default did"
    )
    parser.add_argument(
        "--check", action=argparse.BooleanOptionalAction, default=True, help="compare gradients first, in float32"
    )
    parser.add_argument(
        "--curve", metavar="STEPS", type=int, default=0, help="train both revisions on the same batches; write losses"
    )
    parser.add_argument("--profile", action="store_true", help="write the shares of kinds of operations in training")
    return parser.parse_args(argv)


def earlier_revision(args: argparse.Namespace) -> Revision | None:
    """Return the earlier revision, None without one.

    Raises:
        ValueError: An option names nothing, or lacks another one.
    """
    if args.curve < 0:
        raise ValueError(f"--curve must be at least 0; got {args.curve}")
    if not args.earlier:
        for option in ("checkout", "curve", "earlier-dtype"):
            if getattr(args, option.replace("-", "_")):
                raise ValueError(f"--{option} needs the Python of an earlier revision: pass --earlier as well")
        return None
    if shutil.which(args.earlier) is None:
        raise ValueError(f"--earlier must be the python executable of an environment; got {args.earlier}")
    if args.checkout is not None and not (args.checkout / "visionattn").is_dir():
        raise ValueError(f"--checkout must be a folder that holds visionattn; got {args.checkout}")
    # Not resolved: a link in a virtual environment would lead out of it.
    return Revision(str(Path(shutil.which(args.earlier) or "").absolute()), args.checkout)


def without_paths(command: str, args: argparse.Namespace) -> str:
    """Return the command with placeholders for the paths of the earlier revision, which other machines do not have."""
    for option, value, placeholder in (("earlier", args.earlier, "PYTHON"), ("checkout", args.checkout, "FOLDER")):
        for separator in " =":
            command = command.replace(f"--{option}{separator}{shlex.quote(str(value))}", f"--{option} {placeholder}")
    return command


def sibling(output: Path | None, what: str) -> Path | None:
    """Return the file of other results of the same run: `models-WHAT-…` for `models-…`."""
    if output is None:
        return None
    begins = output.stem.startswith("models")
    return output.with_stem(output.stem.replace("models", f"models-{what}", 1) if begins else f"{output.stem}-{what}")


def start(name: str, args: argparse.Namespace, earlier: Revision | None, stack: ExitStack) -> dict[str, ModelProcess]:
    """Start the processes of a model: this revision, the earlier one if it knows the model, and timm's models."""

    def enter(revision: Revision, network: str) -> ModelProcess:
        process = ModelProcess(revision, network, args.batch, args.device, args.threads)
        return stack.enter_context(process)

    found = {OURS: enter(Revision(), name)}
    if earlier is not None and (process := enter(earlier, name)).facts is not None:
        found[EARLIER] = process
    return found | {network: enter(Revision(), network) for network in PEERS.get(name, ())}


def compare(contenders: Mapping[str, ModelProcess], dtype: str) -> str | None:
    """Return the difference of the two revisions' losses and gradients if it is out of bounds; None in other dtypes."""
    pair = [contenders[name] for name in (OURS, EARLIER)]
    share_weights(*pair)
    if dtype != "float32":
        return None
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"{i}.pt")) for i in range(2)]
        losses = [process.ask("gradients", path) for process, path in zip(pair, paths, strict=True)]
        found, expected = (torch.load(path, weights_only=True, map_location="cpu") for path in paths)
    error, where = disagreement(*({"loss": torch.tensor(loss)} for loss in losses))
    if error <= TOLERANCE:
        error, where = disagreement(found, expected)
    if error <= TOLERANCE:
        print(f"{pair[0].network}: gradients of both revisions differ by at most {error:.2g} ({where})", flush=True)
        return None
    return f"{where} differs from the earlier revision's by {error:.2g} (bound {TOLERANCE})"


def disagreement(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """Return the largest difference of tensors, relative to the largest entry of each, and its name."""
    if found.keys() != expected.keys():
        return float("inf"), ", ".join(sorted(found.keys() ^ expected.keys()))
    largest = max(float(x.abs().max()) for x in expected.values())
    errors = {
        name: float((x - expected[name]).abs().max()) / max(float(expected[name].abs().max()), NEGLIGIBLE * largest)
        for name, x in found.items()
    }
    worst = max(errors, key=lambda name: float("inf") if errors[name] != errors[name] else errors[name])
    return errors[worst], worst


def share_weights(ours: ModelProcess, earlier: ModelProcess) -> None:
    """Give the earlier revision this one's weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "state.pt"))
        ours.ask("save", path)
        earlier.ask("load", path)


def measure(
    name: str,
    dtype: str,
    contenders: Mapping[str, ModelProcess],
    rates: Rates,
    args: argparse.Namespace,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    """Time the contenders in turn and return their rows; all inference comes before training."""
    common = {"dtype": dtype, "model": name, "batch": args.batch}
    networks = {process.network for process in contenders.values()}
    costs = {network: count_costs(network, args.batch, DTYPES[dtype].itemsize) for network in networks}

    def dtype_of(key: str) -> str:
        return str(args.earlier_dtype or dtype) if key == EARLIER else dtype

    def take(step: Run) -> float:
        time.sleep(REST_S)
        return float(step())

    for direction in DIRECTIONS:
        steps = {key: partial(process.ask, "time", direction, dtype_of(key)) for key, process in contenders.items()}
        medians = time_in_turn(steps, device, args.repeats, take)
        for key, process in contenders.items():
            kept = process.ask("kept", dtype_of(key)) if direction == "training" else 0
            cost = costs[process.network][direction]
            yield {
                **common,
                "direction": direction,
                "contender": key if key in (OURS, EARLIER) else TIMM,
                "network": process.network,
                "version": version_of(key, process, args) + (f" in {own}" if (own := dtype_of(key)) != dtype else ""),
                "median_ms": medians[key],
                "images_per_second": args.batch / medians[key] * 1e3,
                "ratio_to_ours": medians[key] / medians[OURS],
                "gmacs": cost.flops / 2e9 / args.batch,
                "parameters_m": cost.parameters / 1e6,
                "peak_mb": process.ask("peak", direction, dtype_of(key)) / 2**20,
                "fraction_of_floor": cost.floor_ms(rates, kept) / medians[key],
            }


def version_of(key: str, process: ModelProcess, args: argparse.Namespace) -> str:
    """Return the short revision of this project, if it lies in a repository, or the version of its package or timm."""
    assert process.facts is not None
    if key not in (OURS, EARLIER):
        return process.facts["timm"]
    folder = process.facts["folder"] if key == EARLIER else str(REPOSITORY)
    command = ["git", "-C", folder, "rev-parse", "--short=7", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return process.facts["visionattn"] if key == EARLIER else package_version("visionattn")


def train_both(
    name: str, dtype: str, contenders: Mapping[str, ModelProcess], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Train both revisions on the same batches from the same weights, the earlier one in float32; return losses."""
    common = {"dtype": dtype, "model": name, "batch": args.batch}
    share_weights(contenders[OURS], contenders[EARLIER])
    ours = contenders[OURS].ask("curve", args.curve, dtype)
    theirs = contenders[EARLIER].ask("curve", args.curve, "float32")
    smooth = [torch.tensor(losses).unfold(0, min(WINDOW, args.curve), 1).mean(-1) for losses in (ours, theirs)]
    gap = float((smooth[0] - smooth[1]).abs().max())
    ends = " and ".join(f"{float(x[-1]):.4f}" for x in smooth)
    print(
        f"{name}, {dtype}: running means of {WINDOW} losses differ by at most {gap:.2g} and end at {ends}", flush=True
    )
    for step, (loss, earlier) in enumerate(zip(ours, theirs, strict=True)):
        yield {**common, "step": step, "loss": loss, "earlier_loss": earlier}


def profile(
    name: str, dtype: str, contenders: Mapping[str, ModelProcess], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Return the share of each kind of operation in training steps, of both revisions."""
    common = {"dtype": dtype, "model": name, "batch": args.batch}
    for key in (OURS, EARLIER):
        if key not in contenders:
            continue
        shares = contenders[key].ask("profile", 1 if args.quick else PROFILED_STEPS, dtype)
        shares = dict(sorted(shares.items(), key=lambda pair: -pair[1]))
        print(
            f"{name}, {dtype}, {key}: {', '.join(f'{kind} {100 * x:.0f}%' for kind, x in shares.items())}", flush=True
        )
        for kind, share in shares.items():
            yield {**common, "contender": key, "kind": kind, "share": share}


def show(rows: list[dict[str, Any]], name: str, dtype: str) -> None:
    """Print the measurements of a model."""
    for row in rows:
        if (row["model"], row["dtype"]) == (name, dtype):
            what = f"{row['direction']:9} {row['contender']:10} {row['network']:28}"
            speed = f"{float(row['images_per_second']):8.1f} img/s {float(row['ratio_to_ours']):6.2f}x"
            rest = f"{100 * float(row['fraction_of_floor']):4.0f}% of floor {float(row['peak_mb']):8.1f} MiB"
            print(f"{dtype} {what} {speed} {rest}", flush=True)


def show_means(rows: list[dict[str, Any]], dtype: str) -> None:
    """Print the geometric mean of the earlier revision's times relative to this one's, over all models."""
    for direction in DIRECTIONS:
        ratios = [
            float(row["ratio_to_ours"])
            for row in rows
            if (row["dtype"], row["direction"], row["contender"]) == (dtype, direction, EARLIER)
        ]
        if ratios:
            mean = geometric_mean(ratios)
            print(
                f"{dtype} {direction}: the earlier revision takes {mean:.3f}x as long ({len(ratios)} models)",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(run(main))
