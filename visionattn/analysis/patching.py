"""Outcomes of a network without some of its heads, for any number of choices of heads, with resumption.

Images are read once: of each batch, the unchanged network's pass is recorded, and repeated for each choice from the
first changed layer on.
"""

import json
import time
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visionattn.analysis.head_images import HeadBatch, ImageBatch
from visionattn.analysis.heads import Edit, Head, HeadLayer, by_layer, change_heads, head_name, replace_heads
from visionattn.analysis.outcomes import Outcomes, measure_outcomes
from visionattn.analysis.replay import Replay
from visionattn.errors import UserError
from visionattn.evaluation.device import Precision, autocast
from visionattn.output import writing
from visionattn.progress import ShowProgress, no_progress

Ablation = Literal["mean", "zero"]
"""Outputs of a head that is ablated: their mean over images and positions, one vector, or 0."""

METADATA = "visionattn heads"
SAVE_SECONDS = 20.0
"""Seconds of work that an interruption can cost, beyond one pass."""


@dataclass(frozen=True)
class Unfinished:
    """A file of the outcomes that an interrupted measurement has so far.

    Attributes:
        path: The `.safetensors` file.
        identity: All that outcomes depend on except heads, ablation and precision, as text: weights, images, their
            order and batch size, options. A file of another identity is ignored, and replaced.
    """

    path: Path
    identity: str

    def finish(self) -> None:
        """Remove the file, once the results are written."""
        self.path.unlink(missing_ok=True)


class _Progress(NamedTuple):
    """Work that is done.

    Attributes:
        batches: Number of batches.
        values: Their outcomes `[outcomes, choices, images]`; no element before the first batch.
        rows: Outcomes of the next batch `[outcomes, images]`, of the choices that are done.
    """

    batches: int
    values: Tensor
    rows: list[Tensor]


def head_means(
    network: nn.Module,
    layers: Sequence[HeadLayer],
    batches: Iterable[ImageBatch],
    *,
    precision: Precision = "32-true",
    progress: ShowProgress = no_progress,
) -> list[Tensor]:
    """Return the mean output of each head over images and all positions, prefix tokens also, `[h, d]` per layer.

    Sums are float64. Of a layer that the network does not run, such as one after the last layer that a probe reads,
    the means are 0.

    Args:
        network: The network, in evaluation mode.
        layers: Its layers, see `head_layers`.
        batches: The images.
        precision: Precision of the network.
        progress: Shows the number of batches.

    Raises:
        UserError: There are no images.
    """
    sums = [torch.zeros(layer.num_heads, 1, dtype=torch.float64) for layer in layers]
    counts = [0] * len(layers)

    def add_to(layer: HeadLayer) -> Edit:
        def add(values: Tensor) -> Tensor:
            flat = values.flatten(0, -3)
            sums[layer.number] = sums[layer.number].to(flat.device) + flat.sum(0, dtype=torch.float64)
            counts[layer.number] += len(flat)
            return values

        return add

    num_batches = 0
    with change_heads({layer: add_to(layer) for layer in layers}), progress("means of heads", "batches") as report:
        for num_batches, batch in enumerate(batches, 1):
            with torch.inference_mode(), autocast(batch.image.device, precision):
                network(batch.image)
            report(num_batches, length_hint(batches) or None)
    if not num_batches:
        raise UserError("there are no images to study heads on: not one could be read")
    return [(total / max(count, 1)).cpu() for total, count in zip(sums, counts, strict=True)]


def measure_ablations(
    network: nn.Module,
    layers: Sequence[HeadLayer],
    choices: Sequence[Collection[Head]],
    batches: Iterable[HeadBatch],
    *,
    ablation: Ablation = "mean",
    means: Sequence[Tensor] | None = None,
    unfinished: Unfinished | None = None,
    precision: Precision = "32-true",
    progress: ShowProgress = no_progress,
) -> Outcomes:
    """Measure the outcomes of a network without each choice of heads.

    Args:
        network: The network, in evaluation mode, on the device of the batches.
        layers: Its layers, see `head_layers`.
        choices: Heads to ablate together; the first choice is empty, the unchanged network.
        batches: The images, the same at each call.
        ablation: What stands in the place of the heads' outputs.
        means: Means of heads, see `head_means`, for the ablation ``mean``.
        unfinished: File that keeps outcomes, from which an interrupted measurement resumes, with the same results to
            the last bit.
        precision: Precision of the network.
        progress: Shows the number of passes.

    Raises:
        UserError: There are no images, or an output is not finite.
        OSError: The file cannot be written.
    """
    if ablation == "mean" and means is None:
        raise ValueError("mean-ablation needs the means of heads: give means=head_means(…)")
    edits = [ablate(layers, heads, None if ablation == "zero" else means) for heads in choices]
    store = None if unfinished is None else _Store(unfinished, choices, ablation, precision)
    done, values, rows = store.read() if store else _Progress(0, torch.empty(0), [])
    found = [values] if values.numel() else []
    replay = Replay(network, layers)
    passes = length_hint(batches) * len(choices)
    with progress("ablation of heads", "passes") as report:
        for number, batch in enumerate(batches):
            if number < done:
                continue
            with torch.inference_mode(), autocast(batch.image.device, precision):
                unchanged = replay.record(batch.image)
                for choice in range(len(rows), len(choices)):
                    output = replay.run(batch.image, edits[choice]) if edits[choice] else unchanged
                    rows.append(measure_outcomes(output, unchanged, batch))
                    report(number * len(choices) + len(rows), passes or None)
                    if store and len(rows) < len(choices):
                        store.save_if_due(number, found, rows)
            found.append(torch.stack(rows, 1))
            rows = []
            if store:
                store.save_if_due(number + 1, found, rows)
    if not found:
        raise UserError("there are no images to study heads on: not one could be read")
    return Outcomes(torch.cat(found, 2))


def ablate(
    layers: Sequence[HeadLayer], heads: Collection[Head], means: Sequence[Tensor] | None = None
) -> dict[HeadLayer, Edit]:
    """Return edits, for `change_heads`, that put the means of heads in the place of their outputs, or 0 without means.

    Args:
        layers: All layers of a network.
        heads: The heads.
        means: Means `[h, d]` of each layer, see `head_means`.
    """
    return {
        layers[layer]: replace_heads(numbers, 0.0 if means is None else means[layer])
        for layer, numbers in by_layer(heads).items()
    }


class _Store:
    """Reads and writes the file of a measurement."""

    def __init__(
        self, unfinished: Unfinished, choices: Sequence[Collection[Head]], ablation: Ablation, precision: Precision
    ) -> None:
        self.path = unfinished.path
        chosen = [[head_name(head) for head in sorted(heads)] for heads in choices]
        self.identity = json.dumps([unfinished.identity, ablation, precision, chosen])
        self.written = time.monotonic()

    def read(self) -> _Progress:
        nothing = _Progress(0, torch.empty(0), [])
        if not self.path.exists():
            return nothing
        try:
            with safe_open(self.path, "pt") as file:
                if file.metadata()[METADATA] != self.identity:
                    return nothing
                number, values, rows = (file.get_tensor(name) for name in ("batches", "values", "rows"))
            return _Progress(int(number), values, list(rows.unbind(1)))
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            warnings.warn(f"{self.path} is damaged ({error}): the measurement starts from its beginning", stacklevel=3)
            return nothing

    def save_if_due(self, number: int, found: list[Tensor], rows: list[Tensor]) -> None:
        """Write the outcomes of the finished batches, and of the next batch so far, unless that was done recently."""
        if time.monotonic() - self.written < SAVE_SECONDS:
            return
        tensors = {
            "batches": torch.tensor(number),
            "values": torch.cat(found, 2) if found else torch.empty(0),
            "rows": torch.stack(rows, 1) if rows else torch.empty(0, 0),
        }
        with writing(self.path) as temporary:
            save_file(tensors, temporary, {METADATA: self.identity})
        self.written = time.monotonic()
