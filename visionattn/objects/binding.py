"""Train and evaluate the probes of all layers at once, on a stream of batches.

All probes of all layers share the features of a batch, which are then dropped. Only parameters and counts are kept.

Shapes: L layers, B images of T tokens, P of N patches drawn from each image, width D.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.checks import check_range
from visionattn.errors import UserError
from visionattn.metrics.semantic import Segments
from visionattn.objects.patches import PatchLabels, PatchPairs, label_patches, sample_patches
from visionattn.objects.probes import PairProbe, PointwiseProbe, RunningNorm, create_probe
from visionattn.objects.scores import NUM_BINS, PairRates, PairScores
from visionattn.probing.frozen import TokenLayout

Layer = Any
"""Name of a layer, mostly its number."""

EVALUATION_SEED = 0
"""Seed of the patches that are drawn in evaluation, the same in every run."""


@dataclass(frozen=True)
class ProbeTraining:
    """Probes and their training, by Adam on all pairs of the patches drawn from each image.

    Args:
        epochs: passes over the training scenes.
        lr: learning rate; the single bias of a probe uses lr times the square root of the backbone's width.
        patches: number of patches drawn from each image, different ones in every training step.
        min_purity: smallest share of its pixels that a patch's segment must have; other patches are left out.
        rank: rank of the quadratic probe.
        num_queries: number of queries of the identity probe: maximum number of segments that it learns per image.
        cache: 10⁹ bytes of memory, at most, for tokens of training scenes: the backbone runs once for each scene that
            fits, and in each epoch for the others. 0 for none.
        seed: for initial weights, the order of scenes, the drawn patches, and random backbones.
    """

    epochs: int = 30
    lr: float = 1e-3
    patches: int = 256
    min_purity: float = 0.0
    rank: int = 100
    num_queries: int = 32
    cache: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, bound in (("epochs", 1), ("patches", 2), ("rank", 1), ("num_queries", 1)):
            check_range(f"training.{name}", getattr(self, name), bound, error=UserError)
        check_range("training.lr", self.lr, 0, above=True, error=UserError)
        check_range("training.min_purity", self.min_purity, 0, 1, error=UserError)
        check_range("training.cache", self.cache, 0, error=UserError)


@dataclass(frozen=True)
class BindingResult:
    """Rates of a probe on a layer, over all pairs of different patches and over those with both on objects."""

    layer: Layer
    probe: str
    num_parameters: int
    pairs: PairRates
    foreground: PairRates


class LayerProbes(nn.Module):
    """Probes of layers with equal width and grid, on tokens that `norm` normalises."""

    def __init__(
        self, num_layers: int, layout: TokenLayout, names: Sequence[str], num_classes: int, training: ProbeTraining
    ) -> None:
        super().__init__()
        self.num_layers, self.layout = num_layers, layout
        self.norm = RunningNorm(num_layers, layout.dim)
        options = {"num_classes": num_classes, "rank": training.rank, "num_queries": training.num_queries}
        self.probes = nn.ModuleDict({name: create_probe(name, num_layers, layout.dim, **options) for name in names})

    def normalize(self, tokens: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        """Normalise each layer's tokens `[B, T, D]`: all patches, or those at `index` `[B, P]`, as `[L, B, P, D]`."""
        patches = [layer[:, self.layout.num_prefix_tokens :] for layer in tokens]
        if index is not None:
            patches = [layer.gather(1, index[..., None].expand(-1, -1, layer.shape[-1])) for layer in patches]
        return self.norm(torch.stack(patches))

    def probe(self, name: str) -> PairProbe:
        """Return a probe by name."""
        found = self.probes[name]
        assert isinstance(found, PairProbe)
        return found

    def at(self, place: int) -> "LayerProbes":
        """Return a copy for the layer at index `place`, in evaluation mode."""
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
        """Score all pairs of patches `[B, N, N]` from the tokens `[B, T, D]` of a single layer."""
        return self.probe(name)(self.normalize([tokens]))[0]

    @torch.no_grad()
    def classify(self, name: str, tokens: Tensor) -> Tensor:
        """Return a pointwise probe's logits of each patch `[B, N, C]` from the tokens `[B, T, D]` of a single layer."""
        probe = self.probe(name)
        assert isinstance(probe, PointwiseProbe)
        return probe.logits(self.normalize([tokens]))[0]


class BindingProbes:
    """Probes of all layers of a backbone.

    Attributes:
        layers: Names of the layers.
    """

    def __init__(
        self,
        layouts: Mapping[Layer, TokenLayout],
        names: Sequence[str],
        num_classes: int,
        training: ProbeTraining | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        """Create the probes.

        Args:
            layouts: TokenLayout of the tokens of each layer.
            names: Names of probes, see `visionattn.objects.probes.PROBES`.
            num_classes: Number of classes of segments.
            training: Options of the probes and their training, by default `ProbeTraining()`. The caller counts epochs.
            device: Device of the probes and the features.

        Raises:
            ValueError: A probe is unknown.
        """
        self.layers, self.names, self.training = list(layouts), list(names), training or ProbeTraining()
        self._groups: list[tuple[list[Layer], LayerProbes]] = []
        same_layout: dict[Any, list[Layer]] = {}
        for layer, layout in layouts.items():
            same_layout.setdefault((layout.dim, layout.grid, layout.num_prefix_tokens), []).append(layer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.training.seed)
            for layers in same_layout.values():
                group = LayerProbes(len(layers), layouts[layers[0]], self.names, num_classes, self.training)
                self._groups.append((layers, group.to(device)))
        # Steps of lr in D weights move a score by about lr √D; a single bias takes steps of that size to keep up.
        parameters = [
            {"params": [values], "lr": self.training.lr * (group.layout.dim**0.5 if values.dim() == 1 else 1)}
            for _, group in self._groups
            for values in group.parameters()
        ]
        self._optimizer = torch.optim.Adam(parameters) if parameters else None
        self._draws = torch.Generator().manual_seed(self.training.seed)
        self._evaluation_draws = torch.Generator().manual_seed(EVALUATION_SEED)
        self._started = False
        self._train_scores, self._scores = (
            [{name: PairScores(len(layers), device) for name in self.names} for layers, _ in self._groups]
            for _ in range(2)
        )

    def train_step(self, features: Mapping[Layer, Tensor], scenes: Segments, calibrate: bool = False) -> float:
        """Train all probes by one step, and return the mean loss of those with parameters.

        Features are the tokens `[B, T, D]` by layer, scenes the segments of the images. With `calibrate`, in the last
        epoch, the pairs also fit the thresholds of probes without one.

        Raises:
            ValueError: The features are not finite.
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
                    # One graph at a time. Layers share no parameters, so the sum trains each on its own.
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
        """Count the scores of all probes on a batch; arguments and errors as in `train_step`."""
        for (layers, group), counted in zip(self._groups, self._scores, strict=True):
            x, _, pairs = self._batch(layers, group.eval(), features, scenes, self._evaluation_draws)
            for name in self.names:
                counted[name].update(group.probe(name)(x), pairs)

    def results(self) -> list[BindingResult]:
        """Return the result of each probe on each layer, ordered by layer."""
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
        """Return a copy of the probes of one layer; a KeyError names a layer without probes."""
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
        """Return normalised patches `[L, B, P, D]`, labels `[B, P]` and pairs `[B, P, P]`."""
        labels = label_patches(scenes, group.layout.grid, self.training.min_purity)
        index = sample_patches(labels, self.training.patches, draws)
        labels = labels if index is None else labels.take(index)
        x = group.normalize([features[layer] for layer in layers], index)
        if not bool(x.sum().isfinite()):
            raise ValueError("the features of the backbone are not finite")
        return x, labels, labels.pairs()

    def _set_prior(self, pairs: PatchPairs) -> None:
        share = float((pairs.same & pairs.counted).sum() / pairs.counted.sum())
        for _, group in self._groups:
            for name in self.names:
                group.probe(name).set_prior(share)
        self._started = True
