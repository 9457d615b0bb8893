"""Probing sessions: heads that learn from the features of a frozen backbone on a data set."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from visionattn.evaluation.as_trained import open_images
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.loop import NAMED_UNREADABLE
from visionattn.evaluation.source import LoadedModel
from visionattn.io import slug
from visionattn.probing.export import export_probe
from visionattn.probing.features.contents import short_hash
from visionattn.probing.features.sources import FeatureSource, check_layouts
from visionattn.probing.features.splits import SEED, ClassImages, Split, SplitFeatures, freeze, prepare
from visionattn.probing.frozen import Layer, weights_hash
from visionattn.probing.heads import select_tokens
from visionattn.probing.options import FeatureOptions, HeadTraining, ProbingData
from visionattn.probing.protocols import FewShotResult, HeadResult, Selection, few_shot, train_heads
from visionattn.probing.protocols.split import draw
from visionattn.probing.requests import FITTED, HeadRequest, LayerPlan, ProbingPlan, request_heads
from visionattn.probing.results import ProbingResult, row_key
from visionattn.progress import ShowProgress, no_progress


class ProbingSession:
    """A frozen backbone on a data set, and heads that learn from its features.

    Features and the state of trainings are cached. A session that was interrupted resumes where it stopped.

    Attributes:
        backbone: The frozen backbone, on its device.
        class_names: A name for each class, in order.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        data: ProbingData | None = None,
        features: FeatureOptions | None = None,
        training: HeadTraining | None = None,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "32-true",
        progress: ShowProgress = no_progress,
    ) -> None:
        """Freeze the model and open the data set.

        Args:
            loaded: The model, as `visionattn.load_model` returns it. If it has a classifier, a copy without the
                classifier is probed; otherwise the model itself is frozen and moved to the device.
            data: Images; by default those that the model was trained on.
            features: Features to extract, and their cache.
            training: Training of the heads.
            device: auto, cpu, cuda, cuda:1, …
            precision: Precision of the backbone; heads are trained in single precision.
            progress: Called at the start of each phase, to show its progress.

        Raises:
            ValueError: Data that are missing or not as expected, or a model that gives no tokens for such images.
        """
        data = data or ProbingData()
        self.features, self.training = features or FeatureOptions(), training or HeadTraining()
        self.device, self._progress = resolve_device(device), progress
        self.origin, spec = asdict(loaded.origin), loaded.spec
        preprocessing = prepare(spec, data)
        self.backbone = freeze(loaded, self.features.layers, preprocessing, self.device, precision)
        module = open_images(spec, data, "fit", preprocessing=preprocessing, seed=SEED)
        self.dataset, self.root, self.class_names = module.name, data.root, module.class_names
        self._batch_size = data.batch_size
        self._images: dict[Split, ClassImages] = {}
        for split in ("train", "validation"):
            with progress(f"reading {split} to see whether it has changed", "files") as report:
                self._images[split] = ClassImages(module, split, self.features.folder / "contents", report)
        self._splits: dict[Split, SplitFeatures] = {}
        self._unreadable: list[str] = []
        self._extraction_seconds = 0.0

    def run(
        self, heads: Sequence[str | HeadRequest], head_options: Mapping[str, Mapping[str, Any]] | None = None
    ) -> list[ProbingResult]:
        """Evaluate heads.

        Args:
            heads: Names: linear, cls, gap, ep_32 and any other ep_M, aim, abmilp, …; knn, ridge, logistic.
            head_options: Options of heads by their names, such as ``{"ep_32": {"d_out": 2}}``.

        Returns:
            A result for each head, for each layer if these are probed separately, and for each number of shots.

        Raises:
            ValueError: A head that does not exist or does not fit the backbone, or features that are not finite.
            OSError: Unreadable images, or a full disk.
        """
        requests = request_heads(heads, head_options)
        plan, names = self.plan(requests), [request.name for request in requests]
        self.extract(plan)
        return sorted(self.results(plan), key=lambda result: row_key(result.to_dict(), names))

    def plan(self, heads: Sequence[HeadRequest], *, attention: bool = False) -> ProbingPlan:
        """Plan the work, and create each head once, so that errors come before the work; attention maps need tokens.

        Raises:
            ValueError: A number out of its bounds, more shots than images of a class, a head that does not fit the
                backbone, or no head with the attention that is wanted.
        """
        groups = [[layer] for layer in self.backbone.layers] if self.features.each_layer else [self.backbone.layers]
        plans, has_attention = [], False
        self.training.expand(LayerPlan((), tuple(heads)).trained, self.training.seed)
        for count in self.training.shots or ():
            draw(torch.tensor(self._images["train"].targets), count)
        for layers in groups:
            layouts = [self.backbone.layouts[layer] for layer in layers]
            plans.append(LayerPlan(tuple(layers), tuple(head.on(layouts) for head in heads)))
            for request in plans[-1].heads:
                if request.is_fitted:
                    continue
                try:
                    has_attention |= request.create(layouts, len(self.class_names)).has_attention
                except ValueError as error:
                    raise ValueError(f"--heads {request.name} on {self.backbone.name}: {error}") from error
        if attention and not has_attention:
            names = ", ".join(head.name for head in heads)
            raise ValueError(f"none of the heads {names} has attention to draw: add ep_32 or leave it out")
        with_tokens = self.features.views > 1 or attention or any(head.needs_tokens for head in heads)
        if with_tokens:
            for plan in filter(attrgetter("trained"), plans):
                check_layouts({layer: self.backbone.layouts[layer] for layer in plan.layers})
        return ProbingPlan(tuple(plans), with_tokens)

    def extract(self, plan: ProbingPlan) -> None:
        """Extract the features for a plan that are not cached yet.

        Raises:
            ValueError: Features that are not finite.
            OSError: Unreadable images, or a full disk.
        """
        start = time.perf_counter()
        asked = {**self.origin, "model": self.backbone.name, "model_kwargs": self.backbone.model_kwargs}
        asked |= {"dataset": self.dataset, "root": self.root and str(Path(self.root).resolve())}
        for split, images in self._images.items():
            with self._progress(f"features of {self.backbone.name}, {split}", "images") as report:
                self._splits[split] = SplitFeatures.extract(
                    self.backbone,
                    images,
                    self.features,
                    self._batch_size,
                    views=self.features.views,
                    with_tokens=plan.with_tokens,
                    asked=asked,
                    progress=report,
                )
        self._unreadable = [name for split in self._splits.values() for name in split.images.missing(split.cache)]
        self._extraction_seconds = time.perf_counter() - start

    def results(self, plan: ProbingPlan) -> Iterator[ProbingResult]:
        """Evaluate the heads of a plan after `extract`; yield each result when it is known, fitted heads first."""
        training = self.training
        for group in plan.layers:
            train, val = (split.source(group.layers) for split in self._splits.values())
            evaluate = partial(self._evaluate, group, val=val)
            found: Iterable[HeadResult | FewShotResult]
            if not training.shots:
                found = evaluate(train, training.seed, key=self._training_key(group.layers, plan))
            else:
                found = (
                    result
                    for count in training.shots
                    for result in few_shot(evaluate, train, count, training.repeats, training.seed)
                )
            about = self._about(group.layers)
            yield from (ProbingResult(about, result) for result in found)

    @property
    def num_val(self) -> int:
        """Number of images of val, after `extract`."""
        return len(self._splits["validation"].cache.targets)

    def describe(self) -> dict[str, Any]:
        """Return backbone and data after `extract`, as the JSON file of ``eval.py probe`` has them."""
        train = self._splits["train"]
        return {
            "model": self.backbone.name,
            **self.origin,
            "model_kwargs": self.backbone.model_kwargs,
            **self._hashes,
            "preprocessing": self.backbone.preprocessing,
            "num_train": len(train.cache.targets),
            "num_val": self.num_val,
            "num_classes": len(self.class_names),
            "num_unreadable": len(self._unreadable),
            "unreadable": self._unreadable[:NAMED_UNREADABLE],
            "tokens_cached": train.with_tokens and bool(train.cache.views),
            "extraction_seconds": self._extraction_seconds,
        }

    def file_stem(self, result: ProbingResult) -> str:
        """Return the name of a result's files, without suffixes."""
        layers = result.layers
        place = [] if layers == ["last"] else ["layers" if len(layers) > 1 else "layer", "+".join(map(str, layers))]
        return "-".join([slug(self.backbone.name), *place, result.name])

    def export(self, result: ProbingResult, folder: str | Path, name: str | None = None) -> Path:
        """Write a trained head, of which `visionattn.load_probe` makes a classifier, and return its ``.json`` file.

        The ``name`` of the files is by default that of `file_stem`.

        Raises:
            ValueError: The result has no head, as k-NN's.
            OSError: The files cannot be written.
        """
        if not isinstance(result.found, HeadResult):
            raise ValueError(f"{result.name} learnt from few-shot draws: export a head that learns from all images")  # noqa: TRY004
        return export_probe(
            folder,
            name or self.file_stem(result),
            result.found,
            self.backbone,
            result.layers,
            self.class_names,
            published=self.origin["weights"] == "pretrained",
        )

    def attention_maps(
        self, result: ProbingResult, indices: Sequence[int]
    ) -> tuple[list[Any], torch.Tensor, tuple[int, int]]:
        """Return the attention of a head in images of val.

        Args:
            result: Result of a head with attention, of a plan with tokens.
            indices: Numbers of images of val, in the order of the features.

        Returns:
            The images as the backbone sees them, bytes `[H, W, 3]`; the weights `[B, M, rows * columns]`; rows and
            columns of patches.
        """
        val, head = self._splits["validation"], result.head
        if head is None:
            raise ValueError(f"{result.name} has no attention to draw")
        source, chosen = val.source(result.layers), torch.tensor(indices)
        (tokens, _), *_ = source.batches(chosen, len(chosen))
        taken = select_tokens(tokens.cpu(), head.tokens, source.num_prefix_tokens, source.num_reg_tokens)
        with torch.no_grad():
            maps = head.attention(taken)
        rows, columns = self.backbone.layouts[result.layers[0]].grid
        images = [val.images.photograph(number) for number in val.cache.indices[chosen].tolist()]
        return images, maps[..., -rows * columns :], (rows, columns)  # patches are the last of a head's tokens

    @cached_property
    def _hashes(self) -> dict[str, str]:
        """Hashes that tell apart backbones, and data sets, of the same name."""
        data = [[images.identity, list(images.targets)] for images in self._images.values()]
        return {"weights_hash": weights_hash(self.backbone.model), "data_hash": short_hash(data)}

    def _about(self, layers: Sequence[Layer]) -> dict[str, Any]:
        """Return the columns of a row that describe backbone, data and training."""
        return {
            "model": self.backbone.name,
            **self.origin,
            "layers": list(layers),
            "dataset": self.dataset,
            "root": self.root,
            "num_train": len(self._splits["train"].cache.targets),
            "views": self.features.views,
            "protocol": self.training.protocol,
            "epochs": self.training.expand([], 0)[1].epochs,
            "seed": self.training.seed,
            **self._hashes,
        }

    def _training_key(self, layers: Sequence[Layer], plan: ProbingPlan) -> dict[str, Any]:
        """Return all that a training on these features depends on, so that its state is found again."""
        key: dict[str, Any] = {"layers": layers, "tokens": plan.with_tokens, "views": self.features.views}
        train, val = (split.cache for split in self._splits.values())
        for cache in (train, val) if self.training.selected_on(train.targets) == "val" else (train,):
            key[cache.arrays.key] = [len(self.class_names), cache.targets.tolist(), cache.views]
        return key

    def _evaluate(
        self,
        plan: LayerPlan,
        train: FeatureSource,
        seed: int,
        *,
        val: FeatureSource,
        key: Mapping[str, Any] | None = None,
    ) -> Iterator[HeadResult]:
        """Evaluate heads; keep the state of their training if there is a key for it."""
        num_classes = len(self.class_names)
        selected_on = self.training.selected_on(train.targets)
        selection = Selection(selected_on=selected_on, seed=seed, device=self.device)
        for name in [head.name for head in plan.heads if head.is_fitted]:
            with self._progress(name, "images") as report:
                yield FITTED[name](train, val, num_classes, selection=selection, progress=report)
        if not plan.trained:
            return
        candidates, recipe = self.training.expand(plan.trained, seed, selected_on)
        state, identity = None, ""
        if key is not None:
            identity = short_hash({**key, "candidates": candidates, "recipe": recipe})
            state = self.features.folder / "training" / f"{identity}.pt"
        names = ", ".join(name for name, _ in plan.trained)
        options: dict[str, Any] = {"device": self.device, "state_file": state, "identity": identity}
        with self._progress(f"{len(candidates)} × {names}" if len(plan.trained) == 1 else names, "steps") as report:
            found = train_heads(train, val, candidates, num_classes, recipe, progress=report, **options)
        yield from found
