"""Segmentation sessions: a head that classifies the pixels of scenes by the patches of a frozen backbone."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visionattn.data.scenes import SceneData
from visionattn.evaluation.as_trained import open_scenes
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.loop import NAMED_UNREADABLE
from visionattn.evaluation.source import LoadedModel
from visionattn.probing.features.contents import short_hash
from visionattn.probing.features.extraction import image_bytes
from visionattn.probing.features.labelled import LabelledImages
from visionattn.probing.features.sources import check_layouts
from visionattn.probing.features.splits import Split, SplitFeatures, freeze
from visionattn.probing.frozen import Layer, weights_hash
from visionattn.probing.options import LayerOptions
from visionattn.probing.rows import SessionRow
from visionattn.probing.scenes import ProbingScenes
from visionattn.probing.segmentation.options import SegmentationTraining
from visionattn.probing.segmentation.pixels import LabelledFeatures, classify_pixels
from visionattn.probing.segmentation.results import SegmentationResult, SegmentationRow, class_rows
from visionattn.probing.segmentation.training import PixelTraining, evaluate, read
from visionattn.progress import ShowProgress, no_progress
from visionattn.training.preprocessing import describe_preprocessing
from visionattn.words import sized

SPLITS: tuple[Split, ...] = ("train", "validation")


class SegmentedImage(NamedTuple):
    """An image of val, as the backbone sees it.

    Attributes:
        name: Name of the image in its data set.
        image: Bytes `[H, W, 3]`.
        labels: Class of each pixel `[H, W]`, -1 for unlabelled pixels.
        predicted: Predicted class of each pixel `[H, W]`.
    """

    name: str
    image: Any
    labels: Tensor
    predicted: Tensor


class SegmentationSession:
    """A frozen backbone on scenes, and a head that classifies pixels by its patches.

    Features, label maps and the state of trainings are cached. A session that was interrupted resumes where it stopped.

    Attributes:
        backbone: The frozen backbone, on its device.
        class_names: A name for each class, in order.
        groups: Layers of each head.
        preparation: The preprocessing in words, compared with the model's own.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        data: ProbingScenes | None = None,
        features: LayerOptions | None = None,
        training: SegmentationTraining | None = None,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "32-true",
        progress: ShowProgress = no_progress,
    ) -> None:
        """Freeze the model and open the data set.

        Args:
            loaded: The model, as `visionattn.load_model` returns it.
            data: Scenes; by default synthetic ones.
            features: Layers whose features are probed, and their cache.
            training: Training of the head.
            device: auto, cpu, cuda, cuda:1, …
            precision: Precision of the backbone; the head is trained in single precision.
            progress: Called at the start of each phase, to show its progress.

        Raises:
            ValueError: Data that are missing or not as expected, a model that gives no tokens for such images, or
                layers whose tokens cannot be put side by side.
        """
        self.data, self.features = data or ProbingScenes(), features or LayerOptions()
        self.training = training or SegmentationTraining()
        self.device, self._progress = resolve_device(device), progress
        self.origin, spec = loaded.origin, loaded.spec
        preprocessing = self.data.prepare(spec)
        self.backbone = freeze(loaded, self.features.layers, preprocessing, self.device, precision)
        layers = self.backbone.layers
        self.groups = [(layer,) for layer in layers] if self.features.each_layer else [layers]
        for group in self.groups:
            check_layouts({layer: self.backbone.layouts[layer] for layer in group})
        self.preparation = describe_preprocessing(preprocessing, spec.preprocessing, loaded.name)
        self.module: SceneData = open_scenes(
            spec, self.data, "fit", preprocessing=preprocessing, name=self.data.name, hflip=0.0
        )
        self.class_names = self.module.class_names
        self._weights_hash = weights_hash(self.backbone.model)
        self._splits: dict[Split, SplitFeatures] = {}
        self._unreadable: list[str] = []
        self._training_seconds = 0.0

    def run(self) -> list[SegmentationResult]:
        """Train and evaluate a head, or one for each layer if these are probed separately.

        Raises:
            ValueError: Features that are not finite, or too few images.
            OSError: Unreadable images, or a full disk.
        """
        self.extract()
        return [self._evaluate(layers) for layers in self.groups]

    @property
    def storage(self) -> str:
        """Size of the cache in words, known before the extraction."""
        kept, tokens = image_bytes(self.backbone.layouts, self.features.dtype, self.module.item_shape[1:])
        counts = {split: len(self.module.scenes(split)) for split in SPLITS}
        online = [split for split in SPLITS if counts[split] * tokens > self.features.token_budget_gb * 1e9]
        size = sum(count * (kept + (0 if split in online else tokens)) for split, count in counts.items())
        words = f"{sized(size)} of features and label maps of {sum(counts.values()):,} images in {self.features.folder}"
        if "train" not in online:
            return words
        return (
            f"{words}; tokens of train take {sized(counts['train'] * tokens)}, above --features.token_budget_gb "
            f"{self.features.token_budget_gb:g}: the backbone runs in every epoch"
        )

    def extract(self) -> None:
        """Extract the features that are not cached yet.

        Raises:
            ValueError: Features that are not finite.
            OSError: Unreadable images, or a full disk.
        """
        asked = {**asdict(self.origin), "model": self.backbone.name, "weights_hash": self._weights_hash}
        asked |= {"dataset": self.module.name, "root": self.data.root and str(Path(self.data.root).resolve())}
        asked |= {"labels": True, "limit": self.data.limit}
        for split in SPLITS:
            with self._progress(f"reading {split} to see whether it has changed", "files") as report:
                images = LabelledImages(self.module, split, self.features.folder / "contents", report)
            with self._progress(f"features of {self.backbone.name}, {split}", "images") as report:
                self._splits[split] = SplitFeatures.extract(
                    self.backbone,
                    images,
                    self.features,
                    self.data.batch_size,
                    with_tokens=True,
                    asked=asked,
                    progress=report,
                )
        self._unreadable = [name for split in self._splits.values() for name in split.images.missing(split.cache)]

    def segment(self, result: SegmentationResult, indices: Sequence[int] | None = None) -> Iterator[SegmentedImage]:
        """Segment images of val by a head of `run`.

        Args:
            result: Result of the head.
            indices: Numbers of images of val, in the order of the features; by default all.
        """
        val = self._splits["validation"]
        features = self._labelled(val, result.row.layers)
        order = torch.arange(len(features)) if indices is None else torch.tensor(indices, dtype=torch.long)
        numbers = iter(val.cache.indices[order].tolist())
        for patches, labels in read(features, order, self.training.batch_size, self.device):
            with torch.no_grad():
                predicted = classify_pixels(result.head(patches), features.layout.grid, labels.shape[1:])
            for true, found in zip(labels.cpu(), predicted.cpu(), strict=True):
                number = next(numbers)
                yield SegmentedImage(val.images.name_of(number), val.images.photograph(number), true, found)

    @property
    def num_val(self) -> int:
        """Number of images of val, after `extract`."""
        return len(self._splits["validation"].cache.indices)

    def describe(self) -> SessionRow:
        """Return model and data in full, after `run`."""
        return SessionRow(
            **self._about(),
            model_kwargs=self.backbone.model_kwargs,
            weights_hash=self._weights_hash,
            preprocessing=self.backbone.preprocessing,
            num_train=len(self._splits["train"].cache.indices),
            num_val=self.num_val,
            num_classes=len(self.class_names),
            num_unreadable=len(self._unreadable),
            unreadable=self._unreadable[:NAMED_UNREADABLE],
            training_seconds=self._training_seconds,
        )

    def _evaluate(self, layers: Sequence[Layer]) -> SegmentationResult:
        train, val = (self._labelled(split, layers) for split in self._splits.values())
        candidates, recipe = self.training.expand()
        num_classes = len(self.class_names)
        training = PixelTraining(train, candidates, num_classes, recipe, self.training.pixels, self.device)
        key = self._splits["train"].cache.arrays.key
        identity = short_hash([key, list(layers), candidates, recipe, training.content()])
        place = f"{self.backbone.name}, layer {'+'.join(map(str, layers))}, seed {recipe.seed}"
        start = time.perf_counter()
        with self._progress(f"segmentation by {place}", "steps") as report:
            training.fit(self.features.folder / "training" / f"{identity}.pt", identity, report)
        self._training_seconds += time.perf_counter() - start
        (chosen,) = training.choose()
        head = chosen.head.eval()
        with self._progress(f"evaluating {place}", "images") as report:
            scores = evaluate(head, val, num_classes, recipe.batch_size, self.device, report)
        about = {**self._about(), "layers": list(layers)}
        classes = class_rows(scores, self.class_names, **about)
        row = SegmentationRow(
            **about,
            miou=scores.compute(),
            pixel_accuracy=scores.pixel_accuracy,
            mean_accuracy=scores.mean_accuracy,
            num_present=len(classes),
            held_out_miou=chosen.best_accuracy,
            lr=chosen.candidate.lr,
            epoch=chosen.best_epoch,
            num_parameters=chosen.num_parameters,
            seconds=chosen.seconds,
        )
        return SegmentationResult(row, classes, head)

    def _labelled(self, split: SplitFeatures, layers: Sequence[Layer]) -> LabelledFeatures:
        return LabelledFeatures(split.source(layers), self.backbone.layouts[layers[0]], split.cache.labels)

    def _about(self) -> dict[str, Any]:
        """Return the fields of `visionattn.probing.rows.ResultRow`."""
        names = {"model": self.backbone.name, "dataset": self.module.name, "root": self.data.root}
        return {**names, "seed": self.training.seed, **asdict(self.origin)}
