"""Object discovery: how well slots agree with the objects of scenes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from visionattn.evaluation.as_trained import SceneOptions, open_scenes
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.loop import Result, evaluate
from visionattn.evaluation.source import Origin
from visionattn.metrics.baselines import block_grid, random_segments
from visionattn.models.slots import Decomposition, SlotAutoencoder, encode
from visionattn.progress import ShowProgress, no_progress
from visionattn.tasks.object_discovery import create_scores, load_slots
from visionattn.training import Weights

AS_TRAINED = SceneOptions()
MEASURES = ("fg_ari", "ari", "mbo_i", "mbo_c", "corloc")


class SlotNetwork(nn.Module):
    """An encoder with its slots: from normalised images ``[B, 3, H, W]`` to slots and what they draw."""

    def __init__(self, encoder: nn.Module, slots: SlotAutoencoder) -> None:
        super().__init__()
        self.encoder, self.slots = encoder, slots

    def forward(self, image: Tensor) -> Decomposition:
        """Find slots."""
        found: Decomposition = self.slots(encode(self.encoder, image))
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class DiscoveryResult(Result):
    """Agreement of slots with the objects of scenes, as shares, None if no scene has a measure; more in `Result`.

    Attributes:
        method: ``slot_attention`` or ``dinosaur``.
        split: name of the split, as given.
        num_slots: parts of an image.
        fg_ari: adjusted Rand index on the foreground.
        ari: adjusted Rand index.
        mbo_i: mean best overlap with instances.
        mbo_c: mean best overlap with classes.
        corloc: share of scenes in which an object is found.
        baselines: the same for ``blocks``, a grid of as many blocks, and ``random`` segments; ``segments`` says which.
        network: encoder and slots, on the device.
    """

    method: str
    split: str | None
    num_slots: int
    fg_ari: float | None
    ari: float | None
    mbo_i: float | None
    mbo_c: float | None
    corloc: float | None
    baselines: list[dict[str, Any]]
    network: SlotNetwork = field(repr=False)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The measures of slots and baselines, as a table."""
        return [{"segments": "slots", **{name: getattr(self, name) for name in MEASURES}}, *self.baselines]


def evaluate_slots(
    checkpoint: str | Path,
    options: SceneOptions = AS_TRAINED,
    *,
    weights: Weights = "average",
    device: str | torch.device = "auto",
    precision: Precision = "32-true",
    progress: ShowProgress = no_progress,
) -> DiscoveryResult:
    """Evaluate how well slots find the objects of scenes, beside a grid of as many blocks and random segments.

    Args:
        checkpoint: file that train.py --task object_discovery wrote.
        options: scenes; data set and size are by default those of the training.
        weights: for a checkpoint that holds a moving average: the average or the raw weights.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        precision: as Lightning's Trainer names it.
        progress: shows the number of batches.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a checkpoint without slots, or data that are missing or do not fit.
    """
    resolved = resolve_device(device)
    encoder, slots, spec = load_slots(checkpoint, weights)
    data = open_scenes(spec, options)
    network = SlotNetwork(encoder, slots).to(resolved)
    num_slots = slots.slot_attention.num_slots
    scores = {name: create_scores() for name in ("slots", "blocks", "random")}
    generator = torch.Generator().manual_seed(0)

    def update(found: Decomposition, batch: Any) -> None:
        height, width = batch.segments.shape[-2:]
        segments = {
            "slots": found.segments(batch.image.shape[-2:]).cpu(),
            "blocks": block_grid(num_slots, height, width).expand_as(batch.segments),
            "random": torch.stack([random_segments(num_slots, height, width, generator) for _ in batch.segments]),
        }
        for name, predicted in segments.items():
            scores[name].update(predicted, batch.segments, batch.classes, batch.things)

    origin = Origin(str(checkpoint), weights)
    about = evaluate(
        network, data, update, spec.model, origin, options, device=resolved, precision=precision, progress=progress
    )
    return DiscoveryResult(
        **about,
        method=slots.method,
        split=options.split,
        num_slots=num_slots,
        **_values(scores["slots"]),
        baselines=[{"segments": name, **_values(scores[name])} for name in ("blocks", "random")],
        network=network,
    )


def _values(scores: MetricCollection) -> dict[str, Any]:
    values = scores.compute()
    return {name: None if values[name].isnan() else float(values[name]) for name in MEASURES}
