"""Models without some of their attention heads, their files, and their speed.

    cut = prune(load_model("vit_nano_patch4_32.cifar10"), {"blocks.3": [1, 2]})
    save_pruned(cut, "pruned.safetensors")
    load_model("pruned.safetensors").predict("images")
    compare_speed(full, cut).ratio

The file describes its model, so that every command takes it as a checkpoint.
"""

import copy
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from visionattn.checks import check_range
from visionattn.errors import UsageError, UserError
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.source import LoadedModel
from visionattn.evaluation.timing import inference_step, time_step, try_count_macs
from visionattn.io import save_weights
from visionattn.models.cut_heads import check_cut, cut_heads
from visionattn.output import check_writable, write_json
from visionattn.progress import ShowProgress, no_progress
from visionattn.training import METADATA_KEY

SUFFIX = ".safetensors"
MIN_PAIRS = 5
"""Fewest repeats of a comparison of speed."""


def prune(
    loaded: LoadedModel, heads: Mapping[str, Sequence[int]], constants: Mapping[str, Tensor] | None = None
) -> LoadedModel:
    """Return a copy of a model without some attention heads; see `visionattn.models.cut_heads.cut_heads`.

    Args:
        loaded: The model, which stays as it is. Heads of it may have been cut before.
        heads: Numbers of the heads, as the model has them, by the path of their block, such as ``blocks.3``.
        constants: Outputs `[h, d]` that the heads of a layer are replaced by, such as their means; 0 by default.

    Raises:
        UserError: There is no such head, it cannot be cut, or the model is a head on a frozen backbone.
    """
    check_prunable(loaded, heads)
    model = cut_heads(copy.deepcopy(loaded.model), heads, constants)
    kwargs = loaded.spec.model_kwargs
    cut = {**(kwargs.get("cut_heads") or {})}
    for name, numbers in heads.items():
        if numbers:
            cut[name] = _all_cut(cut.get(name, ()), numbers)
    return loaded._replace(model=model, spec=replace(loaded.spec, model_kwargs={**kwargs, "cut_heads": cut}))


def check_prunable(loaded: LoadedModel, heads: Mapping[str, Sequence[int]]) -> None:
    """Check before the work that `prune` can cut heads off a model.

    Raises:
        UserError: There is no such head, it cannot be cut, or the model is a head on a frozen backbone.
    """
    if loaded.origin.weights == "probe":
        raise UserError(
            f"{loaded.name} is a head on a frozen backbone, which is not pruned: prune the backbone, by its name or "
            "file, and train a head on it with visionattn linear"
        )
    check_cut(loaded.model, heads)


def _all_cut(before: Sequence[int], now: Sequence[int]) -> list[int]:
    """Return the numbers in the whole layer of the heads that are cut: `before`, and `now` of those that were left."""
    left = [head for head in range(max(now) + len(before) + 1) if head not in before]
    return sorted({*before, *(left[number] for number in now)})


def check_place(path: str | Path) -> None:
    """Check before the work that a pruned model can be written; make the folder.

    Raises:
        UsageError: The suffix is not ``.safetensors``.
        ValueError: It lies where no file can be made.
    """
    if Path(path).suffix != SUFFIX:
        raise UsageError(f"{path} must end in {SUFFIX}, which is how loaders tell the format")
    check_writable(path)


def save_pruned(loaded: LoadedModel, path: str | Path) -> None:
    """Write a model to a ``.safetensors`` file that also describes it, and the description to ``FILE.json``.

    `load_model`, and commands that take a checkpoint, build the model from the file alone; of a model from ``hf-hub:…``
    or ``local-dir:…`` they also want its name. Files there are replaced.

    Raises:
        UsageError: The suffix is not ``.safetensors``.
        ValueError: It lies where no file can be made.
        OSError: It cannot be written.
    """
    check_place(path)
    path = Path(path).expanduser()
    spec = loaded.spec.to_dict()
    try:
        metadata = {"format": "pt", METADATA_KEY: json.dumps(spec)}
        save_weights(loaded.model.state_dict(), path, metadata)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise OSError(f"cannot write {path}: {why}; make room there, or name a place elsewhere") from error
    write_json({"weights": path.name, **spec}, path.with_name(f"{path.name}.json"))


@dataclass(frozen=True)
class ModelSpeed:
    """Speed and size of a model.

    Attributes:
        images_per_second: From the median step.
        params_m: Parameters in millions.
        gmacs: Multiply-accumulates of one image in 10⁹; None if they could not be counted.
    """

    images_per_second: float
    params_m: float
    gmacs: float | None


@dataclass(frozen=True)
class Speed:
    """Speed of a model before and after heads were cut.

    Attributes:
        full: The whole model.
        cut: The cut model.
        ratio: How many times as fast the cut model is: the median over pairs of steps, one of each model.
        ratio_quartiles: First and third quartile of that ratio.
        pairs: Number of pairs.
        batch_size: Images per step.
        device: Where it was measured.
        precision: Precision of the computation.
    """

    full: ModelSpeed
    cut: ModelSpeed
    ratio: float
    ratio_quartiles: tuple[float, float]
    pairs: int
    batch_size: int
    device: str
    precision: Precision

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def compare_speed(
    full: LoadedModel,
    cut: LoadedModel,
    *,
    batch_size: int = 32,
    device: str | torch.device = "auto",
    precision: Precision = "32-true",
    seconds: float = 10.0,
    progress: ShowProgress = no_progress,
) -> Speed:
    """Measure the speed of inference of two models, step by step in turn, on images of noise.

    Steps in turn meet the same other work of the machine, so that their ratio depends less on it than the speeds do.
    Both models are moved to the device.

    Args:
        full: The whole model.
        cut: The cut model.
        batch_size: Images per step.
        device: As `resolve_device` takes it.
        precision: Precision of the computation.
        seconds: Time to spend on both, after two steps of each to warm up; there are at least five pairs.
        progress: Shows the pairs that are done.

    Raises:
        ValueError: There is no such device, or `batch_size` is below 1.
    """
    check_range("batch_size", batch_size, 1)
    place = resolve_device(device)
    size = full.spec.preprocessing["input_size"]
    size = (size[0], 1, size[1] * size[2]) if full.spec.preprocessing.get("sequence") else tuple(size)
    images = torch.randn(batch_size, *size, device=place)
    steps = [inference_step(loaded.model.to(place), images, precision) for loaded in (full, cut)]
    for step in (*steps, *steps):
        time_step(step, place)
    times: list[list[float]] = []
    with progress("timing the full and the cut model in turn", "pairs") as report:
        while len(times) < MIN_PAIRS or sum(map(sum, times)) < seconds:
            times.append([time_step(step, place) for step in steps])
            report(len(times), None)
    first, median, third = statistics.quantiles([whole / less for whole, less in times], n=4)
    one, other = (
        _describe(loaded.model, size, batch_size / statistics.median(own))
        for loaded, own in zip((full, cut), zip(*times, strict=True), strict=True)
    )
    return Speed(one, other, median, (first, third), len(times), batch_size, str(place), precision)


def _describe(model: nn.Module, size: Sequence[int], images_per_second: float) -> ModelSpeed:
    params = sum(parameter.numel() for parameter in model.parameters())
    macs, _ = try_count_macs(copy.deepcopy(model), size)
    return ModelSpeed(images_per_second, params / 1e6, None if macs is None else macs / 1e9)
