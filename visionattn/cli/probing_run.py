"""One backbone on one data set: its features, and heads that classify by them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from visionattn.checks import check_range
from visionattn.cli.errors import UsageError
from visionattn.cli.options import numbers
from visionattn.cli.probing_data import (
    FeatureOptions,
    ProbingData,
    SplitImages,
    choose_source,
    extract,
    open_data,
    short_hash,
)
from visionattn.cli.progress import show_progress
from visionattn.evaluation.loop import NAMED_UNREADABLE
from visionattn.probing.backbone import Backbone, Layer, weights_hash
from visionattn.probing.export import head_tokens
from visionattn.probing.features.extraction import FeatureCache
from visionattn.probing.features.sources import FeatureSource
from visionattn.probing.heads import create_head
from visionattn.probing.protocols import (
    Candidate,
    FewShotResult,
    HeadResult,
    Recipe,
    Selection,
    few_shot,
    knn,
    logistic_regression,
    paper_protocol,
    ridge,
    sweep,
    train_heads,
)
from visionattn.probing.protocols.candidates import ADAMW_LRS, PAPER_LRS, OptimizerName
from visionattn.probing.protocols.results import SelectedOn, middle
from visionattn.probing.protocols.split import can_hold_out, draw
from visionattn.tasks.checkpoint import ClassifierSpec

FITTED: dict[str, Callable[..., HeadResult]] = {"knn": knn, "ridge": ridge, "logistic": logistic_regression}
"""What is fitted to pooled vectors and not trained by steps."""

OF_MEANS = ("linear", "cls", "gap")
"""Heads for which pooled vectors are enough, too."""

Heads = Mapping[str, Mapping[str, Any]]
"""Options of heads by their names, and of what is fitted, which has none."""


@dataclass(frozen=True)
class HeadTraining:
    """How heads are trained, and how rates, epochs and other hyper-parameters are chosen.

    Args:
        protocol: held_out chooses on a tenth of train, and reads val once, at the end; paper is that of arXiv
            2506.10178, LARS with batches of 4,096 and the best epoch on val itself, which flatters.
        optimizer: adamw, the default, or lars.
        lrs: peak learning rates to choose from, separated by commas; those of lars are for a batch of 256.
        weight_decay: of matrices, by default none.
        epochs: passes over the features, by default 30, or 90 of the paper protocol.
        batch_size: images per step, by default 256, or 4096 of the paper protocol.
        patience: epochs without a better accuracy after which a head stops, by default 10; 0 for never.
        race: whether the worse half of a head's rates stops after a third and again after two thirds of the epochs, by
            default true; false takes about twice as long.
        seed: of initial weights, of the order of images, of the part that is held out, and of few-shot draws.
        shots: learn from so few images per class instead; several numbers are separated by commas. Of 1 none can be
            held out: rates and the like are the middle ones of those to choose from, and epochs the last.
        repeats: how many times these images are drawn.
    """

    protocol: Literal["held_out", "paper"] = "held_out"
    optimizer: OptimizerName | None = None
    lrs: str | None = None
    weight_decay: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    patience: int | None = None
    race: bool | None = None
    seed: int = 0
    shots: str | None = None
    repeats: int = 5

    def __post_init__(self) -> None:
        given = [
            name for name in ("optimizer", "lrs", "weight_decay", "patience", "race") if getattr(self, name) is not None
        ]
        if self.protocol == "paper" and given:
            raise UsageError(f"--training.protocol paper has its own {given[0]}: leave out --training.{given[0]}")
        check_range("training.repeats", self.repeats, 1, error=UsageError)
        for count in self.parse_shots():
            check_range("training.shots", count, 1, error=UsageError)

    def selected_on(self, targets: Tensor) -> SelectedOn:
        """Where hyper-parameters are chosen for images of these classes."""
        if self.protocol == "paper":
            return "val"
        return "held_out" if can_hold_out(targets) else "fixed"

    def plan(
        self, heads: Sequence[tuple[str, Mapping[str, Any]]], seed: int, selected_on: SelectedOn = "held_out"
    ) -> tuple[list[Candidate], Recipe]:
        """Heads at learning rates, and what they share.

        Args:
            heads: names and options.
            seed: of the training.
            selected_on: where rates and epochs are chosen; the paper's protocol does so on val.

        Raises:
            ValueError: a number that is out of its bounds.
        """
        if self.protocol == "paper":
            batch_size = 4096 if self.batch_size is None else self.batch_size
            candidates, recipe = paper_protocol(heads, batch_size, seed)
        else:
            optimizer, batch_size = self.optimizer or "adamw", 256 if self.batch_size is None else self.batch_size
            lrs = ADAMW_LRS if optimizer == "adamw" else PAPER_LRS
            rates = list(lrs) if self.lrs is None else numbers("training.lrs", self.lrs, float)
            rates = [middle(rates)] if selected_on == "fixed" else rates
            scale = batch_size / 256 if optimizer == "lars" else 1.0
            candidates = sweep(heads, [scale * lr for lr in rates], optimizer, self.weight_decay or 0.0)
            patience = 10 if self.patience is None else self.patience or None
            race = self.race is not False
            recipe = Recipe(30, batch_size, patience=patience, race=race, selected_on=selected_on, seed=seed)
        return candidates, recipe if self.epochs is None else replace(recipe, epochs=self.epochs)

    def parse_shots(self) -> list[int]:
        """Images per class of few-shot learning; none where heads learn from all."""
        return [] if self.shots is None else numbers("training.shots", self.shots, int)


class Subject:
    """A backbone on a data set."""

    train: FeatureCache
    val: FeatureCache
    with_tokens: bool
    unreadable: list[str]
    extraction_seconds: float

    def __init__(
        self,
        backbone: Backbone,
        spec: ClassifierSpec,
        origin: Mapping[str, Any],
        data: ProbingData,
        features: FeatureOptions,
        training: HeadTraining,
        device: torch.device,
    ) -> None:
        """Opens the data set.

        Args:
            backbone: the backbone, on the device.
            spec: what it is.
            origin: where its weights come from, plain values.
            data: which images.
            features: which features, and where they are kept.
            training: how heads are trained.
            device: where they are.

        Raises:
            ValueError: data that are not there or not as expected.
        """
        self.backbone, self.origin, self.batch_size = backbone, dict(origin), data.batch_size
        self.features, self.training, self.device = features, training, device
        self.module = open_data(spec, data, backbone.preprocessing)
        self.root = data.root
        self.class_names = self.module.class_names
        self.images = {split: self._open(split) for split in ("train", "validation")}
        self.groups: list[list[Layer]] = [list(backbone.layers)]
        if features.each_layer:
            self.groups = [[layer] for layer in backbone.layers]

    def _open(self, split: Literal["train", "validation"]) -> SplitImages:
        with show_progress(f"reading {split} to see whether it has changed", "files") as progress:
            return SplitImages(self.module, split, self.features.cache.expanduser() / "contents", progress)

    def check(self, heads: Heads, attention: bool) -> None:
        """Makes each head once, so that what does not fit shows before the work.

        Raises:
            ValueError: a number that is out of its bounds, more shots than there are images of a class, a head that
                does not fit the backbone, or none with the attention that is to be drawn.
        """
        has_attention = False
        self.training.plan(self._trained(heads, self.groups[0]), self.training.seed)
        for count in self.training.parse_shots():
            draw(torch.tensor(self.images["train"].targets), count)
        for group in self.groups:
            layouts = [self.backbone.layouts[layer] for layer in group]
            tokens = [(torch.zeros(1, layout.num_tokens, layout.dim), layout) for layout in layouts]
            for name, options in self._trained(heads, group):
                try:
                    head = create_head(name, sum(layout.dim for layout in layouts), len(self.class_names), **options)
                    with torch.no_grad():
                        head.eval()(head_tokens(head, tokens))
                except ValueError as error:
                    raise ValueError(f"--heads {name} on {self.backbone.name}: {error}") from error
                has_attention |= head.has_attention
        if attention and not has_attention:
            raise ValueError(f"none of the heads {', '.join(heads)} has attention to draw: add ep_32 or leave it out")

    def extract(self, heads: Heads, attention: bool) -> None:
        """Fills the cache as far as that is wanted.

        Raises:
            ValueError: features that are not finite.
            OSError: unreadable images, or a full disk.
        """
        start = time.perf_counter()
        views = self.features.views
        self.with_tokens = views > 1 or attention or not set(heads) <= {*FITTED, *OF_MEANS}
        asked = {**self.origin, "model": self.backbone.name, "model_kwargs": self.backbone.model_kwargs}
        asked |= {"dataset": self.module.name, "root": self.root and str(Path(self.root).resolve())}
        caches = {}
        for split, images in self.images.items():
            with show_progress(f"features of {self.backbone.name}, {split}", "images") as progress:
                caches[split] = extract(
                    self.backbone,
                    images,
                    self.features,
                    self.batch_size,
                    views=views if split == "train" else 1,
                    tokens=self.with_tokens,
                    asked=asked,
                    progress=progress,
                )
        self.train, self.val = caches["train"], caches["validation"]
        self.unreadable = [name for split, cache in caches.items() for name in self.images[split].missing(cache)]
        self.extraction_seconds = time.perf_counter() - start

    @cached_property
    def hashes(self) -> dict[str, str]:
        """What tells apart backbones, and data sets, of the same name."""
        data = [[images.identity, list(images.targets)] for images in self.images.values()]
        return {"weights_hash": weights_hash(self.backbone.model), "data_hash": short_hash(data)}

    def about(self, group: Sequence[Layer]) -> dict[str, Any]:
        """What a row of results says of backbone and data."""
        return {
            "model": self.backbone.name,
            **self.origin,
            "layers": list(group),
            "dataset": self.module.name,
            "root": self.root,
            "num_train": len(self.train.targets),
            "views": self.features.views,
            "protocol": self.training.protocol,
            "epochs": self.training.plan([], 0)[1].epochs,
            "seed": self.training.seed,
            **self.hashes,
        }

    def describe(self) -> dict[str, Any]:
        """Backbone and data, for the JSON file."""
        return {
            "model": self.backbone.name,
            **self.origin,
            "model_kwargs": self.backbone.model_kwargs,
            **self.hashes,
            "preprocessing": self.backbone.preprocessing,
            "num_train": len(self.train.targets),
            "num_val": len(self.val.targets),
            "num_classes": len(self.class_names),
            "num_unreadable": len(self.unreadable),
            "unreadable": self.unreadable[:NAMED_UNREADABLE],
            "tokens_cached": self.with_tokens and bool(self.train.views),
            "extraction_seconds": self.extraction_seconds,
        }

    def sources(self, group: Sequence[Layer]) -> tuple[FeatureSource, FeatureSource]:
        """Features of both splits, of these layers."""
        splits = (("train", self.train, self.features.views), ("validation", self.val, 1))
        train, val = (
            choose_source(cache, self.backbone, self.images[split], group, views, self.with_tokens)
            for split, cache, views in splits
        )
        return train, val

    def probe(self, heads: Heads, group: Sequence[Layer]) -> Iterator[HeadResult]:
        """Evaluates heads, first those that are fitted."""
        train, val = self.sources(group)
        key = {"layers": group, "tokens": self.with_tokens, "views": self.features.views}
        for cache in (self.train, self.val) if self.training.selected_on(train.targets) == "val" else (self.train,):
            key[cache.arrays.key] = [len(self.class_names), cache.targets.tolist(), cache.views]
        return self._probe(heads, group, train, val, self.training.seed, key)

    def few_shot(self, heads: Heads, group: Sequence[Layer], shots: int) -> list[FewShotResult]:
        """Evaluates heads that learn from few images of each class."""
        train, val = self.sources(group)

        def evaluate(part: FeatureSource, seed: int) -> list[HeadResult]:
            return list(self._probe(heads, group, part, val, seed, None))

        return few_shot(evaluate, train, shots, self.training.repeats, self.training.seed)

    def _probe(
        self,
        heads: Heads,
        group: Sequence[Layer],
        train: FeatureSource,
        val: FeatureSource,
        seed: int,
        key: dict[str, Any] | None,
    ) -> Iterator[HeadResult]:
        """Evaluates heads; the state of their training is kept where there is a key for it."""
        num_classes = len(self.class_names)
        selected_on = self.training.selected_on(train.targets)
        selection = Selection(selected_on=selected_on, seed=seed, device=self.device)
        for name in heads:
            if name in FITTED:
                with show_progress(name, "images") as progress:
                    yield FITTED[name](train, val, num_classes, selection=selection, progress=progress)
        if not (trained := self._trained(heads, group)):
            return
        candidates, recipe = self.training.plan(trained, seed, selected_on)
        state, identity = None, ""
        if key is not None:
            identity = short_hash({**key, "candidates": candidates, "recipe": recipe})
            state = self.features.cache.expanduser() / "training" / f"{identity}.pt"
        names = ", ".join(name for name, _ in trained)
        with show_progress(f"{len(candidates)} × {names}" if len(trained) == 1 else names) as progress:
            options: dict[str, Any] = {"device": self.device, "state_file": state, "identity": identity}
            found = train_heads(train, val, candidates, num_classes, recipe, progress=progress, **options)
        yield from found

    def _trained(self, heads: Heads, group: Sequence[Layer]) -> list[tuple[str, dict[str, Any]]]:
        """Those heads that are trained by steps; clip learns a position for each token and is told how many."""
        trained = [(name, dict(options)) for name, options in heads.items() if name not in FITTED]
        rows, columns = self.backbone.layouts[group[0]].grid
        for name, options in trained:
            if name == "clip":
                options.setdefault("num_tokens", rows * columns + (options.get("tokens") == "all"))
        return trained
