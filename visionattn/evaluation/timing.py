"""Time one model, in a process that does nothing else."""

import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from timm.models import resolve_model_input_args
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from visionattn.checks import check_range
from visionattn.evaluation.device import Precision, autocast, resolve_device
from visionattn.layers.prepared import frozen_weights
from visionattn.training import create_model, describe_model


@dataclass(frozen=True)
class Conditions:
    """Conditions of a measurement, with random images.

    Args:
        img_size: height and width of the input, by default each model's own.
        batch_size: images per step.
        device: auto, cpu, cuda, cuda:1, …
        precision: as Lightning's Trainer names it.
        train: time forward, backward and an AdamW step instead of the forward pass alone.
        channels_last: lay tensors out in channels-last memory format.
        threads: of torch on the CPU, by default as many as in this process.
        seconds: time to spend on the timed steps of each model, of which there are at least five.
        model_kwargs: further arguments for each model.
    """

    img_size: int | None = None
    batch_size: int = 32
    device: str = "auto"
    precision: Precision = "32-true"
    train: bool = False
    channels_last: bool = False
    threads: int = field(default_factory=torch.get_num_threads)
    seconds: float = 5.0
    model_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_range("batch_size", self.batch_size, 1)
        check_range("img_size", self.img_size, 1)


def measure(name: str, conditions: Conditions) -> dict[str, Any]:
    """Build one model and measure it in this process; return the fields of a `ThroughputRow`."""
    torch.set_num_threads(conditions.threads)
    device = resolve_device(conditions.device)
    memory_before = _restart_memory(device)
    model, images = _prepare(name, conditions, device)
    precision = conditions.precision
    step = _training_step(model, images, conditions) if conditions.train else inference_step(model, images, precision)
    with nullcontext() if conditions.train else frozen_weights(model):
        times = _time(step, device, conditions.seconds)
    memory = _peak_memory(device) - memory_before
    median = statistics.median(times)
    macs, reason = try_count_macs(model, images.shape[1:])
    return {
        "model": name,
        "img_size": images.shape[-1],
        "img_height": images.shape[-2],
        "params_m": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "gmacs": None if macs is None else macs / 1e9,
        "gmacs_missing_because": reason,
        "images_per_second": conditions.batch_size / median,
        "median_ms": median * 1e3,
        "timed_runs": len(times),
        "peak_memory_mib": memory / 2**20,
        "error": None,
    }


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Return the multiply-accumulates of one image (channels, height, width); leave ``model`` on meta.

    On meta every operator is counted, while on the CPU fused attention counts as nothing.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval().to("meta")(torch.empty(1, *input_size, device="meta"))
    return int(counter.get_total_flops()) // 2


def _prepare(name: str, conditions: Conditions, device: torch.device) -> tuple[nn.Module, Tensor]:
    # Some models are built for one size, others have no such argument; timm knows which.
    resolved = resolve_model_input_args(name, {"img_size": conditions.img_size}, **conditions.model_kwargs)
    model = create_model(resolved.pop("model_name"), **resolved)
    asked = {"img_size": conditions.img_size} if conditions.img_size else {}
    input_size = describe_model(model, name, **conditions.model_kwargs, **asked).preprocessing["input_size"]
    layout = torch.channels_last if conditions.channels_last else torch.contiguous_format
    images = torch.randn(conditions.batch_size, *input_size, device=device).contiguous(memory_format=layout)
    return model.to(device).to(memory_format=layout), images


def inference_step(model: nn.Module, images: Tensor, precision: Precision) -> Callable[[], None]:
    """Return a function that computes the forward pass, in evaluation mode."""
    model.eval()

    def step() -> None:
        with torch.inference_mode(), autocast(images.device, precision):
            model(images)

    return step


def _training_step(model: nn.Module, images: Tensor, conditions: Conditions) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        with autocast(images.device, conditions.precision):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _time(step: Callable[[], None], device: torch.device, seconds: float) -> list[float]:
    """Return the wall-clock seconds of single steps, after steps that warm up caches, kernels and clocks."""
    warm_up = [time_step(step, device), time_step(step, device)]
    while sum(warm_up) < seconds / 5:
        warm_up.append(time_step(step, device))
    times = [time_step(step, device) for _ in range(5)]
    while sum(times) < seconds:
        times.append(time_step(step, device))
    return times


def time_step(step: Callable[[], None], device: torch.device) -> float:
    """Return the wall-clock seconds of one step."""
    start = perf_counter()
    step()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return perf_counter() - start


def try_count_macs(model: nn.Module, input_size: Sequence[int]) -> tuple[int | None, str | None]:
    """Return what `count_macs` does, or None and the reason; leave ``model`` on meta."""
    channels, height, width = input_size
    try:
        with warnings.catch_warnings(action="ignore"):
            return count_macs(model, (channels, height, width)), None
    except Exception as error:
        # Some models read values while they run, which the meta device does not have. Their speed is measured still.
        return None, f"{type(error).__name__}: {error}".splitlines()[0]


def _restart_memory(device: torch.device) -> int:
    """Restart the record of the peak; return the bytes in use now."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        return 0
    if (status := _process_status()) is not None:
        with suppress(OSError):  # the high-water mark would otherwise include the peaks of imports
            Path("/proc/self/clear_refs").write_text("5")
            return status["VmRSS"]
    return _high_water()


def _peak_memory(device: torch.device) -> int:
    if device.type != "cpu":
        return int(torch.accelerator.max_memory_allocated(device))
    return _high_water()


def _high_water() -> int:
    """Return the largest number of bytes that this process has had in memory at once."""
    status = _process_status()
    if status is not None:
        return status["VmHWM"]
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _process_status() -> dict[str, int] | None:
    """Return the sizes in Linux' /proc/self/status, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    pairs = (line.partition(":")[::2] for line in lines if line.endswith(" kB"))
    return {name: int(value.removesuffix(" kB")) * 1024 for name, value in pairs}
