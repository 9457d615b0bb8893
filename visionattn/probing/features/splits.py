"""Images of a split for the feature cache, and the features of a split."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from visionattn.data import DataError, ImageClassificationData, ImageLoader, UnreadableImageError
from visionattn.data.loading import ImageDataset, OnError
from visionattn.data.module import ImageData
from visionattn.data.normalisation import Normalisation
from visionattn.data.sampling import Draw
from visionattn.data.sources import ImageSource, Source
from visionattn.data.transforms import image_transform, pixel_transform
from visionattn.evaluation.as_trained import prepare_images
from visionattn.evaluation.device import AUTOCAST_DTYPES, Precision
from visionattn.evaluation.source import LoadedModel
from visionattn.io import slug
from visionattn.probing.features.contents import fingerprint, short_hash
from visionattn.probing.features.extraction import (
    FeatureCache,
    ImageBatch,
    collate_images,
    extract_features,
    view_seed,
)
from visionattn.probing.features.sources import (
    CachedFeatures,
    FeatureSource,
    OnlineFeatures,
    TensorFeatures,
)
from visionattn.probing.frozen import FrozenBackbone, Layer
from visionattn.probing.options import LayerOptions, ProbingData
from visionattn.training import ModelSpec

Split = Literal["train", "validation"]

SEED = 0
"""Seed of `ProbingData.limit_per_class` and of augmented views, which all seeds of heads share."""

AUGMENTATION = {
    "scale": (0.08, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "hflip": 0.5,
    "color_jitter": 0.0,
    "interpolation": "bicubic",
}
"""Augmentation of views after the first: random crops and flips, the usual ones of linear probing."""


class SplitImages(ABC):
    """Images of a split, as `visionattn.probing.features.extraction.Images`.

    Attributes:
        source: The images with their names.
        split: train or validation.
        preprocessing: The backbone's.
        label_size: Height and width of the label maps; None for images without them.
    """

    identity: Mapping[str, Any]
    augmentation: Mapping[str, Any]
    label_size: tuple[int, int] | None = None

    def __init__(self, source: Source, split: Split, preprocessing: Mapping[str, Any], module: ImageData) -> None:
        self.source, self.split, self.preprocessing = source, split, preprocessing
        self._num_workers, self._on_error = module.num_workers, module.on_error
        self.targets = cast(Sequence[int], source.targets())

    def __len__(self) -> int:
        return len(self.source)

    def name_of(self, number: int) -> str:
        """Return an image's file with its whole path, or its name in the data set."""
        name = self.source.name_of(number)
        return str(Path(name).resolve()) if Path(name).is_file() else name

    @abstractmethod
    def open(self, batches: Sequence[Sequence[int]], view: int = 0) -> Iterator[ImageBatch]:
        """Read images batch by batch; see `visionattn.probing.features.extraction.Images`."""

    @abstractmethod
    def photograph(self, number: int) -> Any:
        """Return an image as the backbone sees it, but in its own colours: bytes `[H, W, 3]`."""

    def missing(self, cache: FeatureCache) -> list[str]:
        """Return the names of images that could not be read upon extraction, or raise an error for them."""
        numbers = sorted(set(range(len(self))) - set(cache.indices.tolist()))
        names = [self.name_of(number) for number in numbers]
        if names and self._on_error == "raise":
            raise UnreadableImageError(
                f"cannot read {names[0]}, upon extraction; repair it and remove {cache.arrays.folder}, or pass "
                "--data.on_error skip"
            )
        return names


class ClassImages(SplitImages):
    """Images of a split, each of one class.

    The data set was opened by ``setup``. The folder `memory` remembers the hashes of unchanged images.
    """

    def __init__(
        self,
        module: ImageClassificationData,
        split: Split,
        memory: Path,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        loader = module.train_dataloader() if split == "train" else module.val_dataloader()
        if not isinstance(loader.dataset, ImageDataset):
            raise DataError(f"data set {module.name!r} is read in order: probing needs images with random access")
        if module.multi_label:
            raise DataError(f"images of {module.describe()} have several labels: probing needs one label per image")
        source = cast(ImageSource, loader.dataset.source)  # as `open_source` has it
        super().__init__(source, split, module.preprocessing, module)
        parts = [*source.archives(), *(self.name_of(number) for number in range(len(source)))]
        base = "" if module.root is None else str(Path(module.root).resolve())
        self.identity = {
            "dataset": module.name,
            "split": [split, module.splits[split]],
            "fingerprint": fingerprint(parts, memory, progress, base),
        }
        self.augmentation = {**AUGMENTATION, "seed": SEED}

    def open(self, batches: Sequence[Sequence[int]], view: int = 0) -> Iterator[ImageBatch]:
        """Read images batch by batch; see `visionattn.probing.features.extraction.Images`."""
        draws = [
            [Draw(number, view_seed(SEED, view, number) if view else None) for number in batch] for batch in batches
        ]
        return read_batches(
            self.source, self.preprocessing, draws, self._num_workers, self._on_error, AUGMENTATION if view else None
        )

    def photograph(self, number: int) -> Any:
        """Return an image as the backbone sees it, but in its own colours: bytes `[H, W, 3]`."""
        from visionattn.viz.image import denormalize

        seen: Tensor = image_transform(self.preprocessing)(self.source.read(number)[0])
        return denormalize(seen, self.preprocessing["mean"], self.preprocessing["std"])


def read_batches(
    source: Source,
    preprocessing: Mapping[str, Any],
    draws: Sequence[Sequence[Draw]],
    num_workers: int,
    on_error: OnError = "skip",
    augmentation: Mapping[str, Any] | None = None,
) -> Iterator[ImageBatch]:
    """Read images batch by batch; those that cannot be read are left out of their batch, or raise an error."""
    collate = partial(collate_images, normalisation=Normalisation.of(preprocessing))
    return load_batches(source, pixel_transform(preprocessing, augmentation), collate, draws, num_workers, on_error)


def load_batches(
    source: Source,
    transform: Callable[[Any], Any],
    collate: Callable[[Sequence[Any]], ImageBatch],
    draws: Sequence[Sequence[Draw]],
    num_workers: int,
    on_error: OnError,
    **options: Any,
) -> Iterator[ImageBatch]:
    """Read images as `transform` and `collate` give them, batch by batch; `options` are of the loader."""
    loader = ImageLoader(
        ImageDataset(source, transform),
        on_error,
        batch_sampler=draws,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=collate,
        **options,
    )
    return cast(Iterator[ImageBatch], iter(loader))


@dataclass(frozen=True)
class SplitFeatures:
    """Features of a split by a backbone: pooled vectors in a cache, with the tokens of all views if they fit.

    `with_tokens` says whether tokens are needed, or pooled vectors are enough.
    """

    backbone: FrozenBackbone
    images: SplitImages
    cache: FeatureCache
    views: int
    with_tokens: bool

    @classmethod
    def extract(
        cls,
        backbone: FrozenBackbone,
        images: SplitImages,
        options: LayerOptions,
        batch_size: int,
        *,
        views: int = 1,
        with_tokens: bool,
        asked: Mapping[str, Any],
        progress: Callable[[int, int], None] | None = None,
    ) -> "SplitFeatures":
        """Extract the features of a split that are not cached yet.

        The request in plain values, `asked`, names the folder in the cache. Hashes decide whether the folder holds
        features of the same weights and images. Only images of train have several `views`.
        """
        split, views = images.split, views if images.split == "train" else 1
        names = {"split": split, "views": views, "dtype": options.dtype, "layers": backbone.layers}
        request = {**asked, **names, "preprocessing": backbone.preprocessing, "autocast": str(backbone.amp_dtype)}
        cache = extract_features(
            backbone,
            images,
            options.folder / f"{slug(backbone.name)}-{split}-{short_hash(request)}",
            token_budget_gb=options.token_budget_gb if with_tokens else 0.0,
            views=views,
            label_size=images.label_size,
            dtype=options.dtype,
            batch_size=batch_size,
            progress=progress,
        )
        return cls(backbone, images, cache, views, with_tokens)

    def source(self, layers: Sequence[Layer]) -> FeatureSource:
        """Return features of layers: pooled vectors if they are enough, cached tokens, or those of the backbone."""
        online = OnlineFeatures(self.cache, self.backbone, self.images, layers, augment=self.views > 1)
        if not self.with_tokens:
            return pooled_tokens(online)
        return CachedFeatures(self.cache, layers) if self.cache.views else online


def prepare(spec: ModelSpec, data: ProbingData) -> dict[str, Any]:
    """Return the preprocessing of images: the backbone's own, with the values that the options set.

    Raises:
        ValueError: The backbone takes sequences of pixels.
    """
    if spec.preprocessing.get("sequence") is not None:
        raise ValueError(f"{spec.model} was trained on sequences of pixels: probing is for images")
    return prepare_images(spec, data)


def freeze(
    loaded: LoadedModel,
    layers: Sequence[Layer],
    preprocessing: Mapping[str, Any],
    device: torch.device,
    precision: Precision,
) -> FrozenBackbone:
    """Freeze a model on a device: a copy without the classifier if it has one, else the model itself."""
    model: Any = loaded.model
    if getattr(model, "num_classes", 0):
        model = copy.deepcopy(model)
        model.reset_classifier(0)
    spec, dtype = loaded.spec, AUTOCAST_DTYPES.get(precision)
    return FrozenBackbone(model.to(device), spec.model, layers, spec.model_kwargs, preprocessing, dtype)


def pooled_tokens(features: FeatureSource) -> TensorFeatures:
    """Return the class token, if there is one, and the mean patch in place of all tokens.

    For heads that take the mean of their tokens these are the same, and need only the pooled vectors.
    """
    kinds = dict.fromkeys((features.usual_pooling, "gap"))
    tokens = torch.stack([features.pooled(kind) for kind in kinds], dim=1)
    return TensorFeatures(tokens, features.targets, num_prefix_tokens=len(kinds) - 1)
