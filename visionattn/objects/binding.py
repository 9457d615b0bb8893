"""Probes of all layers of a backbone, trained and evaluated at once on a stream of batches.

    probes = BindingProbes(backbone.layouts, ("quadratic", "linear"), num_classes)
    for batch in train:
        probes.train_step(backbone(batch.image), batch)
    for batch in validation:
        probes.evaluate_step(backbone(batch.image), batch)
    results = probes.results()

Features of a batch serve all probes of all layers and are gone with it; what stays is parameters and counts.

Shapes: L layers, B images of T tokens, P of whose N patches are drawn, width D.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from visionattn.objects.patches import PatchLabels, PatchPairs, Segments, label_patches, sample_patches
from visionattn.objects.probes import PointwiseProbe, Probe, RunningNorm, create_probe
from visionattn.objects.scores import NUM_BINS, PairRates, PairScores

Layer = Any
"""Whatever a backbone calls its layers, mostly their numbers."""

EVALUATION_SEED = 0
"""Of the patches that are drawn in evaluation, which are the same in every run."""


class Layout(Protocol):
    """How the tokens of a layer lie, as `visionattn.probing.backbone.TokenLayout`."""

    @property
    def dim(self) -> int:
        """Width of a token."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches."""


@dataclass(frozen=True)
class ProbeRecipe:
    """How probes are made and trained.

    Attributes:
        lr: Of Adam; that of a probe's single bias is √D times as large.
        patches: Drawn from each image in each step; all pairs of them count.
        min_purity: Share of a patch that its segment must have for the patch to be used.
        rank: Of the quadratic probe.
        num_queries: Of the identity probe.
    """

    lr: float = 1e-3
    patches: int = 256
    min_purity: float = 0.0
    rank: int = 100
    num_queries: int = 32

    def __post_init__(self) -> None:
        for name, bound in (("patches", 2), ("rank", 1), ("num_queries", 1)):
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        if not 0 <= self.min_purity <= 1:
            raise ValueError(f"min_purity must be from 0 to 1, got {self.min_purity}")


@dataclass(frozen=True)
class BindingResult:
    """What a probe of a layer reaches.

    Attributes:
        layer: The layer.
        probe: Name of the probe.
        num_parameters: That were trained.
        pairs: Rates of all pairs of two different patches.
        foreground: Rates of those both patches of which lie on objects.
    """

    layer: Layer
    probe: str
    num_parameters: int
    pairs: PairRates
    foreground: PairRates


class LayerProbes(nn.Module):
    """Probes of layers of one width and grid, on their normalised tokens.

    Attributes:
        layout: Of the tokens of each of the layers.
        norm: Of the tokens.
        probes: By name.
    """

    def __init__(
        self, num_layers: int, layout: Layout, names: Sequence[str], num_classes: int, recipe: ProbeRecipe
    ) -> None:
        super().__init__()
        self.num_layers, self.layout = num_layers, layout
        self.norm = RunningNorm(num_layers, layout.dim)
        options = {"num_classes": num_classes, "rank": recipe.rank, "num_queries": recipe.num_queries}
        self.probes = nn.ModuleDict({name: create_probe(name, num_layers, layout.dim, **options) for name in names})

    def normalize(self, tokens: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        """Normalised patches `[L, B, P, D]` of each layer's tokens `[B, T, D]`, all or those at `index` `[B, P]`."""
        patches = [layer[:, self.layout.num_prefix_tokens :] for layer in tokens]
        if index is not None:
            patches = [layer.gather(1, index[..., None].expand(-1, -1, layer.shape[-1])) for layer in patches]
        return self.norm(torch.stack(patches))

    def probe(self, name: str) -> Probe:
        """A probe by its name."""
        found = self.probes[name]
        assert isinstance(found, Probe)
        return found

    def at(self, place: int) -> "LayerProbes":
        """A copy for one of the layers, for evaluation."""
        single = copy.deepcopy(self).eval().requires_grad_(False)
        single.num_layers = 1
        for module in single.modules():
            for name, values in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, nn.Parameter(values[place : place + 1].clone(), requires_grad=False))
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer[place : place + 1].clone())
        return single

    @torch.no_grad()
    def score(self, name: str, tokens: Tensor) -> Tensor:
        """Scores of all pairs of patches `[B, N, N]` by the one layer's tokens `[B, T, D]`."""
        return self.probe(name)(self.normalize([tokens]))[0]

    @torch.no_grad()
    def classify(self, name: str, tokens: Tensor) -> Tensor:
        """What a pointwise probe says of each patch `[B, N, C]` by the one layer's tokens `[B, T, D]`."""
        probe = self.probe(name)
        assert isinstance(probe, PointwiseProbe)
        return probe.logits(self.normalize([tokens]))[0]


class BindingProbes:
    """Probes of all layers.

    Attributes:
        layers: The layers.
    """

    def __init__(
        self,
        layouts: Mapping[Layer, Layout],
        names: Sequence[str],
        num_classes: int,
        recipe: ProbeRecipe | None = None,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        """Makes the probes.

        Args:
            layouts: How the tokens of each layer lie.
            names: Of probes, see `visionattn.objects.probes.PROBES`.
            num_classes: Of which segments are.
            recipe: How they are trained, by default `ProbeRecipe()`.
            seed: Of initial weights, and of the patches that are drawn in training.
            device: Where they are, and the features too.

        Raises:
            ValueError: An unknown probe.
        """
        self.layers, self.names, self.recipe = list(layouts), list(names), recipe or ProbeRecipe()
        self._groups: list[tuple[list[Layer], LayerProbes]] = []
        alike: dict[Any, list[Layer]] = {}
        for layer, layout in layouts.items():
            alike.setdefault((layout.dim, layout.grid, layout.num_prefix_tokens), []).append(layer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layers in alike.values():
                group = LayerProbes(len(layers), layouts[layers[0]], self.names, num_classes, self.recipe)
                self._groups.append((layers, group.to(device)))
        # Steps of lr in D weights move a score by some lr √D: a single bias takes steps of that size, to keep up.
        parameters = [
            {"params": [values], "lr": self.recipe.lr * (group.layout.dim**0.5 if values.dim() == 1 else 1)}
            for _, group in self._groups
            for values in group.parameters()
        ]
        self._optimizer = torch.optim.Adam(parameters) if parameters else None
        self._draws = torch.Generator().manual_seed(seed)
        self._evaluation_draws = torch.Generator().manual_seed(EVALUATION_SEED)
        self._started = False
        self._train_scores, self._scores = (
            [{name: PairScores(len(layers), device) for name in self.names} for layers, _ in self._groups]
            for _ in range(2)
        )

    def train_step(self, features: Mapping[Layer, Tensor], scenes: Segments, calibrate: bool = False) -> float:
        """Trains all probes by one step.

        Args:
            features: Tokens `[B, T, D]` of each layer.
            scenes: What the images are made of.
            calibrate: Whether the pairs count for the thresholds of scores that have none, as they should in the last
                epoch.

        Returns:
            The mean loss of the probes that are trained.

        Raises:
            ValueError: Features that are not finite.
        """
        if self._optimizer is not None:
            self._optimizer.zero_grad()
        losses = []
        for (layers, group), counted in zip(self._groups, self._train_scores, strict=True):
            x, labels, pairs = self._batch(layers, group.train(), features, scenes, self._draws)
            if not self._started and bool(pairs.counted.any()):
                self._set_prior(pairs)
            for name in self.names:
                probe = group.probe(name)
                if any(True for _ in probe.parameters()):
                    # One graph at a time; layers do not share parameters, so that a sum trains each by itself.
                    loss = probe.loss(x, labels, pairs)
                    loss.sum().backward()
                    losses.append(loss.detach().mean())
                if calibrate and not probe.has_threshold:
                    with torch.no_grad():
                        counted[name].update(probe(x), pairs)
        if self._optimizer is not None:
            self._optimizer.step()
        return float(torch.stack(losses).mean()) if losses else 0.0

    @torch.no_grad()
    def evaluate_step(self, features: Mapping[Layer, Tensor], scenes: Segments) -> None:
        """Counts how all probes score the pairs of a batch; arguments and errors are those of `train_step`."""
        for (layers, group), counted in zip(self._groups, self._scores, strict=True):
            x, _, pairs = self._batch(layers, group.eval(), features, scenes, self._evaluation_draws)
            for name in self.names:
                counted[name].update(group.probe(name)(x), pairs)

    def results(self) -> list[BindingResult]:
        """What each probe of each layer reaches, by layers."""
        found = {}
        for (layers, group), train_scores, scores in zip(self._groups, self._train_scores, self._scores, strict=True):
            for name in self.names:
                probe = group.probe(name)
                num_parameters = sum(values.numel() for values in probe.parameters()) // len(layers)
                fitted = None if probe.has_threshold else train_scores[name].fit_thresholds().tolist()
                for place, layer in enumerate(layers):
                    threshold = NUM_BINS // 2 if fitted is None else fitted[place]
                    rates = (scores[name].rates(place, threshold, foreground) for foreground in (False, True))
                    found[layer, name] = BindingResult(layer, name, num_parameters, *rates)
        return [found[layer, name] for layer in self.layers for name in self.names]

    def at(self, layer: Layer) -> LayerProbes:
        """The probes of one layer."""
        for layers, group in self._groups:
            if layer in layers:
                return group.at(layers.index(layer))
        raise KeyError(layer)

    def _batch(
        self,
        layers: Sequence[Layer],
        group: LayerProbes,
        features: Mapping[Layer, Tensor],
        scenes: Segments,
        draws: torch.Generator,
    ) -> tuple[Tensor, PatchLabels, PatchPairs]:
        """Normalised patches `[L, B, P, D]`, with labels `[B, P]` and pairs `[B, P, P]`."""
        labels = label_patches(scenes, group.layout.grid, self.recipe.min_purity)
        index = sample_patches(labels, self.recipe.patches, draws)
        labels = labels if index is None else labels.take(index)
        x = group.normalize([features[layer] for layer in layers], index)
        if not bool(x.sum().isfinite()):
            raise ValueError("the backbone gives features that are not finite")
        return x, labels, labels.pairs()

    def _set_prior(self, pairs: PatchPairs) -> None:
        share = float((pairs.same & pairs.counted).sum() / pairs.counted.sum())
        for _, group in self._groups:
            for name in self.names:
                group.probe(name).set_prior(share)
        self._started = True
