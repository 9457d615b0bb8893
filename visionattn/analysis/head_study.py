"""A study of the heads of one model: every score and effect on the same images, step by step."""

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visionattn.analysis.attention_sheets import draw_heads
from visionattn.analysis.copying import measure_copying
from visionattn.analysis.direct import measure_direct
from visionattn.analysis.effects import Effects, measure_effects, measure_set
from visionattn.analysis.head_images import HeadImages
from visionattn.analysis.heads import Head, HeadLayer, HeadValues, by_layer, head_name
from visionattn.analysis.outcomes import Outcomes, measure_outcomes
from visionattn.analysis.patching import Ablation, Unfinished, ablate, head_means
from visionattn.analysis.pruning import PruningCurve, measure_curves, order_heads, random_orders
from visionattn.analysis.replay import Replay
from visionattn.analysis.scores import measure_scores
from visionattn.analysis.subject import LookOptions, Subject
from visionattn.errors import UserError
from visionattn.evaluation.device import Precision
from visionattn.evaluation.loop import NAMED_UNREADABLE
from visionattn.evaluation.source import LoadedModel
from visionattn.probing.frozen import weights_hash
from visionattn.progress import ShowProgress, no_progress
from visionattn.training.branches import Inference, choose_inference

if TYPE_CHECKING:
    from visionattn.viz.image import Pixels

RANDOM = "random"
"""Prefix of the names of random orders."""


@dataclass
class HeadStudy:
    """Figures of the heads of one model; each method adds to them.

    Attributes:
        loaded: The model, in evaluation mode, on the device of the images.
        images: The images.
        layers: All attention layers of the model, see `head_layers`.
        heads: The heads that are studied.
        ablation: What stands in the place of a head's outputs.
        precision: Precision of the passes that measure effects.
        seed: Seed of copied patches and of random orders.
        state: Path and beginning of the names of files that keep the outcomes of unfinished work; None for no files.
        progress: Shows the progress of each step.
        values: Figures of each head so far.
        effects: Effects of single heads.
        removed: Outcomes without the heads of `remove`.
        curves: Outcomes without more and more heads, by the name of their order.
        pruned: What is known of a model that was pruned.
        seconds: Time that each step took in this process.
    """

    loaded: LoadedModel
    images: HeadImages
    layers: Sequence[HeadLayer]
    heads: Sequence[Head]
    ablation: Ablation = "mean"
    precision: Precision = "32-true"
    seed: int = 0
    state: Path | None = None
    progress: ShowProgress = no_progress
    values: HeadValues = field(init=False)
    effects: Effects | None = field(default=None, init=False)
    removed: dict[str, Any] = field(default_factory=dict, init=False)
    curves: dict[str, PruningCurve] = field(default_factory=dict, init=False)
    pruned: dict[str, Any] = field(default_factory=dict, init=False)
    seconds: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.values = {head: {} for head in self.heads}

    @property
    def effect(self) -> str:
        """Name of the effect of a head: ``d_loss``, or of a model without classes ``d_features``."""
        return "d_loss" if self.images.has_classes else "d_features"

    @property
    def figures(self) -> dict[str, str]:
        """Labels of the figures of the network by their names."""
        if self.images.has_classes:
            return {"loss": "loss", "top1": "top-1"}
        return {"d_features": "change of features"}

    @cached_property
    def means(self) -> list[Tensor] | None:
        """Means of the heads `[h, d]` of each layer; None for the ablation ``zero``."""
        if self.ablation == "zero":
            return None
        return head_means(self.loaded.model, self.layers, self.images, precision=self.precision, progress=self.progress)

    def add(self, values: HeadValues) -> None:
        """Add figures of heads; those of heads that are not studied are left out."""
        for head, found in values.items():
            if head in self.values:
                self.values[head] |= found

    def draw_sheet(self, height: int = 96) -> "Pixels":
        """Draw the attention of the heads in the first image, `height` pixels high.

        Of all heads of a layer, and if the heads that are studied differ from layer to layer, at most 12 are drawn.
        """
        from visionattn.viz.image import denormalize

        batch, wanted = next(iter(self.images), None), self.images.data.preprocessing
        if batch is None:
            raise UserError("there are no images to draw heads on: not one could be read")
        image = batch.image[:1]
        pixels = denormalize(image.cpu(), wanted["mean"], wanted["std"])
        subject = Subject(self.loaded, image, pixels, batch.name[:1], self.progress)
        numbers = by_layer(self.heads)
        (layer, first), *_ = numbers.items()
        are_some = len(first) < self.layers[layer].num_heads and all(heads == first for heads in numbers.values())
        return draw_heads(subject, LookOptions(list(numbers), first if are_some else None, height=height))

    def measure_attention(self) -> None:
        """Measure the scores of attention weights, and `copy`, in single precision."""
        layers = [self.layers[number] for number in by_layer(self.heads)]
        with self._timed("attention"):
            self.add(measure_scores(self.loaded.model, layers, self.images, progress=self.progress))
            self.add(measure_copying(self.loaded.model, layers, self.images, seed=self.seed, progress=self.progress))

    def measure_effects(self) -> None:
        """Measure the effect of each head on the outputs, and its direct effect."""
        with self._timed("effects"):
            self.effects = measure_effects(
                self.loaded.model,
                self.layers,
                self.heads,
                self.images,
                unfinished=self._unfinished("effects"),
                **self._how,
            )
        self.add(self.effects.values())
        if self.images.has_classes:
            found = measure_direct(
                *(self.loaded.model, self.layers, self.heads, self.images),
                precision=self.precision,
                progress=self.progress,
            )
            self.add(found)

    def remove(self, heads: Collection[Head]) -> dict[str, Any]:
        """Measure the outcomes without some heads; return them with the names of the heads."""
        found = measure_set(self.loaded.model, self.layers, heads, self.images, **self._how)
        self.removed = {"heads": [head_name(head) for head in heads], **found}
        return self.removed

    def order(self, word: str) -> list[Head]:
        """Return the heads in the order of a score, lowest first, or highest first for ``SCORE:desc``.

        Raises:
            UserError: No head has this score.
        """
        score, _, direction = word.partition(":")
        if all(found.get(score) is None for found in self.values.values()):
            raise UserError(f"no head of {self.loaded.name} has a score {score}: heads cannot be ordered by it")
        return order_heads(self.values, score, descending=direction == "desc")

    def prune(self, words: Sequence[str], points: int, num_random: int) -> dict[str, PruningCurve]:
        """Measure curves of pruning, in the orders of scores and in random orders."""
        orders = {word: self.order(word) for word in words}
        chance = random_orders(list(self.heads), num_random, self.seed)
        orders |= {f"{RANDOM} {number}": order for number, order in enumerate(chance)}
        with self._timed("curves"):
            self.curves = measure_curves(
                *(self.loaded.model, self.layers, orders, self.images),
                points=points,
                unfinished=self._unfinished("curves"),
                **self._how,
            )
        return self.curves

    def cut_arguments(self, heads: Collection[Head]) -> tuple[dict[str, list[int]], dict[str, Tensor] | None]:
        """Return heads by the path of their block, and their means, for `visionattn.evaluation.prune`."""
        numbers = {self.layers[layer].name: found for layer, found in by_layer(heads).items()}
        if self.means is None:
            return numbers, None
        return numbers, {self.layers[layer].name: self.means[layer] for layer in by_layer(heads)}

    def judge(self, cut: LoadedModel, heads: Collection[Head]) -> dict[str, Any]:
        """Return the outcomes of a model without some heads, and how far it is from this model with them ablated.

        All is computed in single precision: ``whole`` has the outcomes of this model. ``difference`` is the largest
        difference of the outputs, over the largest output.
        """
        replay, edits = Replay(self.loaded.model, self.layers), ablate(self.layers, heads, self.means)
        smaller = cut.model.to(self.images.device)
        if self._inference is not None:
            choose_inference(smaller, cut.name, self._inference)
        found: list[Tensor] = []
        difference = largest = 0.0
        with self.progress("comparing the smaller model", "batches") as report:
            for number, batch in enumerate(self.images, 1):
                with torch.inference_mode():
                    unchanged, masked = replay.record(batch.image), replay.run(batch.image, edits)
                    output = smaller(batch.image)
                found.append(torch.stack([measure_outcomes(x, unchanged, batch) for x in (unchanged, output)], 1))
                difference = max(difference, (output - masked).abs().max().item())
                largest = max(largest, masked.abs().max().item())
                report(number, len(self.images))
        outcomes = Outcomes(torch.cat(found, 2))
        changes = {**outcomes.means(1), **outcomes.effects(1)}
        return {**changes, "whole": outcomes.means(0), "difference": difference / largest}

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain values, as ``visionattn heads --output`` writes them."""
        effects = self.effects
        return {
            "model": self.loaded.spec.model,
            **asdict(self.loaded.origin),
            "model_kwargs": self.loaded.spec.to_dict()["model_kwargs"],
            "weights_hash": self._hash,
            "dataset": self.images.data.name,
            "num_images": self.images.num_read,
            "unreadable": self.images.unreadable[:NAMED_UNREADABLE],
            "ablation": self.ablation,
            "precision": self.precision,
            "seed": self.seed,
            "layers": [{"layer": x.number, "block": x.name, "num_heads": x.num_heads} for x in self.layers],
            "baseline": {} if effects is None else effects.baseline,
            "split_half": None if effects is None else effects.split_half,
            "heads": self.rows(),
            "removed": self.removed,
            "curves": {name: curve.to_dict() for name, curve in self.curves.items()},
            "pruned": self.pruned,
            "seconds": self.seconds,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of figures for each head."""
        names = dict.fromkeys(name for found in self.values.values() for name in found)
        return [
            {"layer": head[0], "head": head[1], **{name: found.get(name) for name in names}}
            for head, found in self.values.items()
        ]

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - start

    @cached_property
    def _hash(self) -> str:
        return weights_hash(self.loaded.model)

    @property
    def _inference(self) -> Inference | None:
        """Branches of DCAL's models that answer."""
        return getattr(self.loaded.model, "inference", None)

    @property
    def _how(self) -> dict[str, Any]:
        return {
            "ablation": self.ablation,
            "means": self.means,
            "precision": self.precision,
            "progress": self.progress,
        }

    def _unfinished(self, step: str) -> Unfinished | None:
        """Return the file of a step that was interrupted; all that outcomes depend on identifies it."""
        if self.state is None:
            return None
        identity = {
            "weights": self._hash,
            "images": self.images.identity,
            "model": [self.loaded.spec.model, self.loaded.spec.to_dict()["model_kwargs"], self._inference],
        }
        digest = hashlib.blake2b(json.dumps(identity, default=str).encode(), digest_size=16).hexdigest()
        return Unfinished(self.state.with_name(f"{self.state.name}.{step}.safetensors").expanduser(), digest)

    def finish(self) -> None:
        """Remove the files of unfinished work, once the results are written."""
        for step in ("effects", "curves"):
            if (unfinished := self._unfinished(step)) is not None:
                unfinished.finish()
