"""Experiments of eval.py binding: what becomes of segmentation when the tokens that bind objects are changed."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visionattn.cli.binding_run import BindingSubject
from visionattn.cli.errors import UsageError
from visionattn.cli.options import numbers
from visionattn.data.scenes import SceneBatch
from visionattn.objects.interventions import (
    Correlation,
    blocks_of,
    inject,
    intervene,
    probe_subspace,
    random_subspace,
    record_attention,
    shuffle,
)
from visionattn.objects.patches import label_patches
from visionattn.objects.segmentation import InstanceIoU, SemanticIoU, count_overlaps
from visionattn.probing.backbone import Backbone

WANTED = ("quadratic", "class", "identity")
"""The probe whose subspace is changed, and those of the last layer by which images are segmented."""


@dataclass(frozen=True)
class Interventions:
    """Experiments on the subspace through which the quadratic probe reads tokens, for ViTs.

    Segmentation is that of the class and the identity probe of the last layer, as they were trained without changes.

    Args:
        layers: numbers of the blocks after which tokens are changed, separated by commas; by default no experiments.
        shuffle: shares of patches that exchange their parts in the subspace.
        inject: how far these parts are brought to their object's mean: 0 not at all, 1 is the mean.
    """

    layers: str | None = None
    shuffle: str = "0.5,1"
    inject: str = "0.5,1"

    def __post_init__(self) -> None:
        for name in ("shuffle", "inject"):
            values = numbers(f"interventions.{name}", getattr(self, name), float)
            if not all(0 <= value <= 1 for value in values):
                raise UsageError(f"--interventions.{name} must be from 0 to 1, got {getattr(self, name)}")

    def parse_layers(self) -> list[int]:
        """Layers after which tokens are changed."""
        return [] if self.layers is None else numbers("interventions.layers", self.layers, int)

    def amounts(self) -> dict[str, list[float]]:
        """How much of each change there is."""
        return {name: numbers(f"interventions.{name}", getattr(self, name), float) for name in ("shuffle", "inject")}


class Condition(NamedTuple):
    """A change of tokens.

    Attributes:
        layer: after whose block; None for tokens as they are.
        change: shuffle or inject, or none.
        amount: of it.
        subspace: that of the probe, or a random one of as many dimensions.
    """

    layer: int | None = None
    change: str = "none"
    amount: float = 0.0
    subspace: str = "–"


class Experiments:
    """Interventions on a subject whose probes have been trained."""

    def __init__(self, subject: BindingSubject, options: Interventions) -> None:
        """Chooses the subspaces.

        Args:
            subject: that `check` has nothing against.
            options: which experiments.

        Raises:
            ValueError: the probe's subspace leaves nothing out.
        """
        self.subject, self.backbone = subject, subject.backbone
        self.blocks = blocks_of(self.backbone.model, self.backbone.name)
        self.last = subject.probes.layers[-1]
        self.draws = torch.Generator().manual_seed(subject.seed)
        self.bases: dict[tuple[int, str], Tensor] = {}
        self.conditions = [Condition()]
        for layer in options.parse_layers():
            basis = probe_subspace(subject.probes.at(layer))
            drawn = random_subspace(len(basis), basis.shape[1], self.draws).to(basis.device)
            self.bases |= {(layer, "probe"): basis, (layer, "random"): drawn}
            self.conditions += [
                Condition(layer, change, amount, subspace)
                for change, amounts in options.amounts().items()
                for amount in amounts
                for subspace in ("probe", "random")
            ]

    @staticmethod
    def check(backbone: Backbone, options: Interventions, rank: int) -> None:
        """Checks what can be known before probes are trained.

        Args:
            backbone: the backbone.
            options: which experiments.
            rank: of the quadratic probe.

        Raises:
            ValueError: the backbone is no ViT or not wider than the rank, or a layer is not among those that are
                probed.
        """
        blocks_of(backbone.model, backbone.name)
        width = backbone.layouts[backbone.layers[0]].dim
        if rank >= width - 1:
            raise ValueError(
                f"--training.rank {rank} leaves nothing out of {backbone.name}'s width {width}: give less than "
                f"{width - 1} for --interventions.layers"
            )
        for layer in options.parse_layers():
            if layer not in backbone.layers:
                probed = ", ".join(map(str, backbone.layers))
                raise ValueError(f"--interventions.layers must be among those that are probed, {probed}; got {layer}")

    def segment(self) -> list[dict[str, Any]]:
        """How well val is segmented under each condition: a row for each."""
        subject, heads = self.subject, self.subject.probes.at(self.last)
        semantic = [SemanticIoU(subject.module.num_classes) for _ in self.conditions]
        instance = [InstanceIoU() for _ in self.conditions]
        for batch in subject.validation("interventions"):
            for number, condition in enumerate(self.conditions):
                with self._intervene(condition, batch):
                    tokens = self.backbone(batch.image)[self.last]
                for name, score in (("class", semantic[number]), ("identity", instance[number])):
                    outputs = heads.classify(name, tokens)
                    predicted, grid = outputs.argmax(-1), heads.layout.grid
                    score.update(batch, count_overlaps(batch, predicted, grid, outputs.shape[-1]))
        return [
            {
                **subject.about(),
                **condition._asdict(),
                "semantic_miou": classes.compute(),
                "instance_miou": objects.compute(),
            }
            for condition, classes, objects in zip(self.conditions, semantic, instance, strict=True)
        ]

    def correlate(self) -> list[dict[str, Any]]:
        """How the quadratic probe's scores of each layer go with the attention of the block that reads it.

        Pearson's r of the probability of the same object and of the attention of a patch to another, mean of the heads.
        """
        layers = [layer for layer in self.subject.probes.layers if layer + 1 < len(self.blocks)]
        probes = {layer: self.subject.probes.at(layer) for layer in layers}
        readers: dict[int, Any] = {layer: self.blocks[layer + 1].attn for layer in layers}
        found = {layer: Correlation() for layer in layers}
        layout = self.backbone.layouts[self.last]
        apart = ~torch.eye(layout.grid[0] * layout.grid[1], dtype=torch.bool, device=self.subject.device)
        for batch in self.subject.validation("attention"):
            with record_attention(readers, layout.num_prefix_tokens) as weights:
                features = self.backbone(batch.image)
            for layer in layers:
                scores = probes[layer].score("quadratic", features[layer]).sigmoid()
                found[layer].update(scores[:, apart], weights[layer][:, apart])
        return [
            {
                **self.subject.about(),
                "layer": layer,
                "depth": self.subject.depth(layer),
                "correlation": found[layer].compute(),
            }
            for layer in layers
        ]

    def _intervene(self, condition: Condition, batch: SceneBatch) -> AbstractContextManager[None]:
        if condition.layer is None:
            return nullcontext()
        layout = self.backbone.layouts[condition.layer]
        if condition.change == "shuffle":
            change = shuffle(condition.amount, self.draws)
        else:
            change = inject(condition.amount, label_patches(batch, layout.grid).instances)
        basis = self.bases[condition.layer, condition.subspace]
        return intervene(self.blocks[condition.layer], layout.num_prefix_tokens, basis, change)
