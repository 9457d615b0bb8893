"""Parts of the GPU session: their commands, with small problems for `--quick`, and the time that each may take."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

TRAINING = ("jsonargparse", "lightning", "pytorch_metric_learning", "rich", "timm", "torchmetrics", "torchvision")
"""Packages that `visionattn fit` needs."""

TUNED = {"VISIONATTN_TUNE": "1", "VISIONATTN_TUNE_SECONDS": "0"}
"""Measured tiles are used, and no others are measured."""

SECONDS_PER_KERNEL = 5
"""Of the measurement of tiles; there are about 65 kernels and problems."""


@dataclass(frozen=True)
class Command:
    """Command `python -m MODULE ARGUMENTS`.

    Attributes:
        module: What is run.
        arguments: Its options.
        environment: Variables that it sees beside those of the session.
    """

    module: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the command as a shell takes it."""
        variables = (f"{name}={value}" for name, value in self.environment.items())
        return " ".join([*variables, "python -m", self.module, shlex.join(self.arguments)])


@dataclass(frozen=True)
class Part:
    """A part of the session.

    Attributes:
        name: By which it is asked for.
        limit_s: Seconds that it may take. What earlier parts left over is added.
        commands: Run one after another.
        needs: Packages without which it is skipped.
        stops: Whether the session ends if it fails.
    """

    name: str
    limit_s: int
    commands: tuple[Command, ...]
    needs: tuple[str, ...] = ()
    stops: bool = False


def make_parts(device: str, quick: bool, data: Path | None, results: Path) -> list[Part]:
    """Return all parts in their order: correctness, tiles, attention, memory, models, trainings.

    Args:
        device: "cuda" or "cpu".
        quick: Small problems, run once.
        data: CIFAR-10 as a folder of images; the embedded digits if None.
        results: Folder of the result files.
    """

    def bench(
        script: str, *options: str, small: tuple[str, ...] = (), output: str | None = None, **environment: str
    ) -> Command:
        common = ["--device", device]
        if quick:
            common += ["--quick", "--repeats", "1", "--threads", "1"]
        if output:
            common += ["--output", str(results / f"{output}-{device}.csv")]
        # Options name what the quick problems are not, and a compiler on a CPU takes longer than all the rest.
        return Command(f"kernels.bench.{script}", (*common, *(small if quick else options)), environment)

    def attention(only: str, peers: str, output: str, **environment: str) -> Command:
        options, small = (
            ("--dtype", "bfloat16", "--only", only, "--peers", peers),
            ("--only", "d4", "--peers", "sdpa-full"),
        )
        return bench("attention", *options, small=small, output=output, **environment)

    full = "sdpa-flash,sdpa-cudnn,natten"
    with_bias = "nat-tiny-1,h4 c32 k7 d1 rpb,h8 c32 k7 d1 rpb"
    others, compiled = "dinat_tiny,halo_h1,dcal_deit_small_patch16_224", ("--compile", "--alone")
    fit, slots = trainings(device, quick, data, results)
    return [
        Part("smoke", 80, (bench("smoke"),), stops=True),
        Part("tests", 220, (gpu_tests(quick),), needs=("pytest",), stops=True),
        Part(
            "tune",
            400,
            (
                # With the default tiles: what the measurements are worth.
                attention("h2 c32 k7 d1 rpb,h2 c32 k7 d8 rpb", full, "attention-untuned", VISIONATTN_TUNE="0"),
                bench("tune", "--seconds", str(SECONDS_PER_KERNEL), output="tune"),
            ),
        ),
        Part("attention", 150, (attention("nat-tiny", f"gather,{full}", "attention", **TUNED),)),
        Part("na2d", 80, (attention("na2d,na1d", full, "attention-na2d", **TUNED),)),
        Part("flex", 180, (attention(with_bias, "flex", "attention-flex", **TUNED),)),
        # Without flex, which is compiled for each map.
        Part("memory", 40, (bench("memory", "--backend", "triton,tiled,gemm,reference", output="memory", **TUNED),)),
        Part(
            "models",
            120,
            (bench("gathered", "--models", f"nat_tiny,{others}", output="gathered", **TUNED),),
            needs=("timm",),
        ),
        Part(
            "halonet",
            90,
            (
                attention("halonet", "timm,sdpa-flash", "attention-halonet", **TUNED),
                bench("halonet", small=("--batch", "1"), output="halonet", **TUNED),
            ),
            needs=("timm",),
        ),
        Part(
            "compiled",
            190,
            (
                bench("gathered", "--models", "nat_tiny", *compiled, output="gathered-compiled", **TUNED),
                bench("gathered", "--models", others, *compiled, output="gathered-compiled-others", **TUNED),
            )[: 1 if quick else None],
            needs=("timm",),
        ),
        Part("fit", 70, (fit,), needs=TRAINING if data else (*TRAINING, "sklearn")),
        Part("slots", 60, (slots,), needs=(*TRAINING, "cv2")),
    ]


def gpu_tests(quick: bool) -> Command:
    """Return the tests of the kernels on a GPU, in a process per core; a few of the others if quick."""
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    if quick:
        chosen = ["-k", "matches_reference and (B0 or H1xW1) or gives_a_reason", "tests/kernels/test_triton.py"]
        return Command("pytest", (*options, "-m", "not gpu and not slow", *chosen))
    if find_spec("xdist") is not None:
        options += ["-n", str(os.cpu_count()), "--dist", "worksteal"]
    return Command("pytest", (*options, "-m", "gpu", "--maxfail", "20", "tests/kernels"))


def trainings(device: str, quick: bool, data: Path | None, results: Path) -> tuple[Command, Command]:
    """Return trainings of a classifier, on CIFAR-10 if its folder is given, and of Slot Attention."""
    options: dict[str, object] = {
        "trainer.accelerator": "gpu" if device == "cuda" else "cpu",
        "trainer.devices": 1,
        "trainer.precision": "32-true" if quick else "bf16-mixed",
        "runs": results / "runs",
    }
    slots: dict[str, object] = {
        "config": "objects/slot_attention_synthetic",
        "data.length": 4000,
        "trainer.max_epochs": 2,
    }
    fit: dict[str, object] = {"config": "quickstart"}
    if data is not None:
        # Two epochs of 45,000 images; the batch of the config, 64, is too small for a GPU.
        fit = {
            "config": "cifar10/nat",
            "data.root": data,
            "trainer.max_epochs": 2,
            "data.batch_size": 512,
            "model.lr": 3e-3,
        }
    if quick:
        few = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 2, "trainer.limit_val_batches": 1}
        options |= {**few, "data.num_workers": 0, "data.batch_size": 2, "data.eval_batch_size": 2}
        slots["data.length"] = 200

    def train(model: dict[str, object]) -> Command:
        return Command("visionattn", ("fit", *(f"--{name}={value}" for name, value in {**model, **options}.items())))

    return train(fit), train(slots)
