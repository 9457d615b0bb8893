"""Experiments on a trained session: change the tokens that bind objects, and compare scores with attention."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from visionattn.analysis.attention import record_attention, token_layers
from visionattn.checks import check_range
from visionattn.data.scenes import SceneBatch
from visionattn.errors import UserError
from visionattn.metrics.semantic import InstanceIoU, SemanticScores, count_overlaps
from visionattn.objects.interventions import (
    Correlation,
    blocks_of,
    inject,
    intervene,
    patch_attention,
    probe_subspace,
    random_subspace,
    shuffle,
)
from visionattn.objects.patches import label_patches
from visionattn.objects.results import AttentionRow, BindingResults, InterventionRow
from visionattn.objects.session import BindingSession

REQUIRED_PROBES = ("quadratic", "class", "identity")
"""Probes that experiments use: one for the subspace, and two to segment images."""


@dataclass(frozen=True)
class Interventions:
    """Interventions on the subspace through which the quadratic probe reads tokens, for ViTs.

    The class and identity probes of the last layer, trained without interventions, segment the images.

    Args:
        layers: numbers of the blocks after which tokens are changed; by default no interventions.
        shuffle: shares of patches that exchange their part in the subspace.
        inject: strengths with which this part is moved to its object's mean, from 0 (unchanged) to 1 (the mean).
    """

    layers: list[int] | None = None
    shuffle: list[float] = field(default_factory=lambda: [0.5, 1.0])
    inject: list[float] = field(default_factory=lambda: [0.5, 1.0])

    def __post_init__(self) -> None:
        for name in ("shuffle", "inject"):
            for amount in getattr(self, name):
                check_range(f"interventions.{name}", amount, 0, 1, error=UserError)


class Experiments:
    """Experiments on the probes of a session, which are trained before `run`."""

    def __init__(self, session: BindingSession, options: Interventions) -> None:
        """Check that the experiments are possible; the probes need not be trained yet.

        The session has the probes of `REQUIRED_PROBES`.

        Raises:
            ValueError: The backbone is no ViT or no wider than the rank of the probe, or a layer or probe is not among
                those of the session.
        """
        self.session, self.options, backbone = session, options, session.backbone
        self.blocks = blocks_of(backbone.model, backbone.name)
        self.last = session.probes.layers[-1]
        self.draws = torch.Generator().manual_seed(session.seed)
        rank, width = session.training.rank, backbone.layouts[self.last].dim
        if rank >= width - 1:
            raise ValueError(
                f"--training.rank {rank} leaves nothing out of {backbone.name}'s width {width}: give less than "
                f"{width - 1} for --interventions.layers"
            )
        for layer in options.layers or ():
            if layer not in backbone.layers:
                probed = ", ".join(map(str, backbone.layers))
                raise ValueError(f"--interventions.layers must be among those that are probed, {probed}; got {layer}")
        if missing := [name for name in REQUIRED_PROBES if name not in session.probes.names]:
            raise ValueError(f"--interventions.layers needs the probes {', '.join(missing)}: add them to --probes")

    def run(self) -> BindingResults:
        """Segment images under each intervention, and correlate scores with attention."""
        return BindingResults(interventions=self.segment(), attention=self.correlate())

    def segment(self) -> list[InterventionRow]:
        """Measure the segmentation of the validation split under each condition."""
        session, heads = self.session, self.session.probes.at(self.last)
        conditions = [(*each, SemanticScores(session.module.num_classes), InstanceIoU()) for each in self._conditions()]
        for batch in session.validation("interventions"):
            for row, basis, semantic, instance in conditions:
                with self._intervene(row, basis, batch):
                    tokens = session.backbone(batch.image)[self.last]
                for name, score in (("class", semantic), ("identity", instance)):
                    outputs = heads.classify(name, tokens)
                    predicted, grid = outputs.argmax(-1), heads.layout.grid
                    score.update(batch, count_overlaps(batch, predicted, grid, outputs.shape[-1]))
        return [
            replace(row, semantic_miou=semantic.compute(), instance_miou=instance.compute())
            for row, _, semantic, instance in conditions
        ]

    def correlate(self) -> list[AttentionRow]:
        """Correlate the quadratic probe's scores on each layer with the attention in the next block.

        The correlation is Pearson's r between the probability of the same object and the attention from one patch to
        another, averaged over heads.
        """
        session, backbone = self.session, self.session.backbone
        layers = [layer for layer in session.probes.layers if layer + 1 < len(self.blocks)]
        probes = {layer: session.probes.at(layer) for layer in layers}
        attention = token_layers(backbone.model)
        readers = {layer: attention[layer + 1] for layer in layers}
        found = {layer: Correlation() for layer in layers}
        layout = backbone.layouts[self.last]
        apart = ~torch.eye(layout.grid[0] * layout.grid[1], dtype=torch.bool, device=session.device)
        for batch in session.validation("attention"):
            with record_attention(readers, patch_attention) as weights:
                features = backbone(batch.image)
            for layer in layers:
                scores = probes[layer].score("quadratic", features[layer]).sigmoid()
                found[layer].update(scores[:, apart], weights[layer][:, apart])
        return [
            AttentionRow(**session.about(), layer=layer, depth=session.depth(layer), correlation=found[layer].compute())
            for layer in layers
        ]

    def _conditions(self) -> list[tuple[InterventionRow, Tensor | None]]:
        """Return all conditions as rows without scores, each with the basis of its subspace."""
        unchanged = InterventionRow(**self.session.about())
        conditions: list[tuple[InterventionRow, Tensor | None]] = [(unchanged, None)]
        for layer in self.options.layers or ():
            basis = probe_subspace(self.session.probes.at(layer))
            drawn = random_subspace(len(basis), basis.shape[1], self.draws).to(basis.device)
            conditions += [
                (replace(unchanged, layer=layer, change=change, amount=amount, subspace=name), subspace)
                for change in ("shuffle", "inject")
                for amount in getattr(self.options, change)
                for name, subspace in (("probe", basis), ("random", drawn))
            ]
        return conditions

    def _intervene(self, row: InterventionRow, basis: Tensor | None, batch: SceneBatch) -> AbstractContextManager[None]:
        if row.layer is None or basis is None:
            return nullcontext()
        layout = self.session.backbone.layouts[row.layer]
        if row.change == "shuffle":
            change = shuffle(row.amount, self.draws)
        else:
            change = inject(row.amount, label_patches(batch, layout.grid).instances)
        return intervene(self.blocks[row.layer], layout.num_prefix_tokens, basis, change)
