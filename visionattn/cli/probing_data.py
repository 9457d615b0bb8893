"""Images for probing: the splits of a data set as the feature cache wants them, and features of them."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from visionattn.checks import check_range
from visionattn.cli.errors import UsageError
from visionattn.data import DataError, ImageClassificationData, ImageLoader, UnreadableImageError
from visionattn.data.loading import ImageDataset, OnError
from visionattn.data.sampling import Draw
from visionattn.data.sources import ImageSource
from visionattn.data.transforms import MAX_SIZE, image_transform
from visionattn.probing.backbone import Backbone, Layer
from visionattn.probing.features.contents import fingerprint
from visionattn.probing.features.extraction import FeatureCache, ImageBatch, collate_images, extract_features, view_seed
from visionattn.probing.features.sources import (
    CachedFeatures,
    FeatureSource,
    LayerFeatures,
    OnlineFeatures,
    TensorFeatures,
)
from visionattn.tasks.checkpoint import ClassifierSpec

SEED = 0
"""Of the images of --data.limit_per_class and of augmented views, which all seeds of heads share."""

AUGMENTATION = {
    "scale": (0.08, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "hflip": 0.5,
    "color_jitter": 0.0,
    "interpolation": "bicubic",
}
"""Of views from the second on: random crops and flips, as for linear probes of old."""


@dataclass(frozen=True)
class ProbingData:
    """Which images, and how they are read; preprocessing that is not given is the backbone's own.

    Args:
        name: data set as for train.py: digits, folder, torch/cifar10, hfds/NAME, …
        root: folder of images; for the other data sets, where they are downloaded to.
        train_split: name of the split that heads are trained on, where it is not found by itself.
        val_split: the same for the one that they are evaluated on.
        limit_per_class: train on so many images of each class, the same ones for every seed.
        download: let torchvision or timm fetch a data set that is not there.
        img_size: height and width in pixels.
        crop_pct: part of the resized image's edge that is kept.
        interpolation: bicubic, bilinear, nearest, …
        batch_size: images per step of the backbone.
        num_workers: loader processes.
        on_error: an image that cannot be decoded: raise names it and stops, skip leaves it out and counts it.
    """

    name: str | None = None
    root: str | None = None
    train_split: str | None = None
    val_split: str | None = None
    limit_per_class: int | None = None
    download: bool = False
    img_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    batch_size: int = 128
    num_workers: int | None = None
    on_error: OnError = "raise"


@dataclass(frozen=True)
class FeatureOptions:
    """Which features, and where they are kept.

    Args:
        layers: last, or numbers of blocks (in hierarchical models, stages), counted from 0 or, if negative, from the
            last; several, separated by commas, are put side by side.
        each_layer: probe each of these layers for itself instead.
        views: views of each training image that heads see in turn: the image as it is evaluated, and views - 1
            with random crops and flips. Where tokens are not cached, more than 1 means new ones in every epoch.
        cache: folder for features and the state of trainings; a rerun goes on from there.
        token_budget_gb: tokens of a split are cached where they take no more, in 10⁹ bytes; otherwise the backbone runs
            in every epoch, and only pooled vectors are cached.
        dtype: in which features are cached.
    """

    layers: str = "last"
    each_layer: bool = False
    views: int = 1
    cache: Path = Path("runs/probing")
    token_budget_gb: float = 16.0
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        if self.views < 1:
            raise UsageError(f"--features.views must be at least 1, got {self.views}")
        if not self.token_budget_gb >= 0:
            raise UsageError(f"--features.token_budget_gb must be at least 0, got {self.token_budget_gb}")

    def parse_layers(self) -> list[Layer]:
        """The layers by name or number.

        Raises:
            UsageError: others than these.
        """
        words = [word.strip() for word in self.layers.split(",")]
        if wrong := [word for word in words if word != "last" and not re.fullmatch(r"-?\d+", word)]:
            raise UsageError(f"--features.layers must be last or numbers of blocks, as in 3,7,last; got {wrong[0]!r}")
        return ["last" if word == "last" else int(word) for word in words]


class SplitImages:
    """Images of a split, as `visionattn.probing.features.extraction.Images` wants them.

    Args:
        module: after ``setup``.
        split: which one.
        memory: folder that remembers the hashes of images that were not touched.
        progress: called with the number of images whose contents were read, and of all.
    """

    def __init__(
        self,
        module: ImageClassificationData,
        split: Literal["train", "validation"],
        memory: Path,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        loader = module.train_dataloader() if split == "train" else module.val_dataloader()
        if not isinstance(loader.dataset, ImageDataset):
            raise DataError(f"data set {module.name!r} is read in order: probing needs images with random access")
        self.source = cast(ImageSource, loader.dataset.source)  # as `open_source` has it
        self.preprocessing = module.preprocessing
        self._num_workers, self._on_error = module.num_workers, module.on_error
        self.targets = self.source.targets()
        parts = [*self.source.archives(), *(self.name_of(number) for number in range(len(self.source)))]
        base = "" if module.root is None else str(Path(module.root).resolve())
        self.identity: Mapping[str, Any] = {
            "dataset": module.name,
            "split": [split, module.splits[split]],
            "fingerprint": fingerprint(parts, memory, progress, base),
        }
        self.augmentation: Mapping[str, Any] = {**AUGMENTATION, "seed": SEED}

    def __len__(self) -> int:
        return len(self.source)

    def name_of(self, number: int) -> str:
        """An image's file, in full, or what its data set calls it."""
        name = self.source.name_of(number)
        return str(Path(name).resolve()) if Path(name).is_file() else name

    def open(self, batches: Sequence[Sequence[int]], view: int = 0) -> Iterator[ImageBatch]:
        """Reads images, batch by batch; see `visionattn.probing.features.extraction.Images`."""
        transform = image_transform(self.preprocessing, AUGMENTATION if view else None)
        draws = [
            [Draw(number, view_seed(SEED, view, number) if view else None) for number in batch] for batch in batches
        ]
        loader = ImageLoader(
            ImageDataset(self.source, transform),
            self._on_error,
            batch_sampler=draws,
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate_images,
        )
        return cast(Iterator[ImageBatch], iter(loader))

    def photograph(self, number: int) -> Any:
        """An image as the backbone sees it, but with its own colours: bytes [H, W, 3]."""
        from visionattn.viz.image import denormalize

        seen: Tensor = image_transform(self.preprocessing)(self.source.read(number)[0])
        return denormalize(seen, self.preprocessing["mean"], self.preprocessing["std"])

    def missing(self, cache: FeatureCache) -> list[str]:
        """Names of the images that could not be read when features were extracted.

        Raises:
            UnreadableImageError: there are some, and ``--data.on_error`` is raise.
        """
        numbers = sorted(set(range(len(self))) - set(cache.indices.tolist()))
        names = [self.name_of(number) for number in numbers]
        if names and self._on_error == "raise":
            raise UnreadableImageError(
                f"cannot read {names[0]}, upon extraction; repair it and remove {cache.arrays.folder}, or pass "
                "--data.on_error skip"
            )
        return names


def prepare(spec: ClassifierSpec, data: ProbingData) -> dict[str, Any]:
    """How images are prepared: as the backbone wants it, but for what the options say.

    Raises:
        ValueError: the backbone takes no square images, or sequences of pixels.
    """
    check_range("data.img_size", data.img_size, 1, MAX_SIZE, error=UsageError)
    trained = dict(spec.preprocessing)
    if trained.pop("sequence", None) is not None:
        raise ValueError(f"{spec.model} was trained on sequences of pixels: probing is for images")
    channels, height, width = trained["input_size"]
    if height != width and data.img_size is None:
        raise ValueError(f"{spec.model} takes {height}×{width} images, not square ones: choose --data.img_size N")
    edge = height if data.img_size is None else data.img_size
    given = {"crop_pct": data.crop_pct, "interpolation": data.interpolation}
    keys = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    kept = {key: trained[key] for key in keys} | {key: value for key, value in given.items() if value is not None}
    return {"input_size": (channels, edge, edge), **kept}


def open_data(spec: ClassifierSpec, data: ProbingData, preprocessing: Mapping[str, Any]) -> ImageClassificationData:
    """Both splits of the data set, prepared so."""
    # Pretrained on an embedded data set but probed on a folder: the folder it is.
    stored = None if data.root and spec.dataset == "digits" else spec.dataset or None
    channels, edge, _ = preprocessing["input_size"]
    module = ImageClassificationData(
        name=data.name or stored,
        root=data.root,
        train_split=data.train_split,
        val_split=data.val_split,
        download=data.download,
        limit_per_class=data.limit_per_class,
        img_size=edge,
        in_chans=channels,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        mean=list(preprocessing["mean"]),
        std=list(preprocessing["std"]),
        interpolation=preprocessing["interpolation"],
        crop_pct=preprocessing["crop_pct"],
        crop_mode=preprocessing["crop_mode"],
        on_error=data.on_error,
        seed=SEED,
    )
    module.setup("fit")
    return module


def extract(
    backbone: Backbone,
    images: SplitImages,
    options: FeatureOptions,
    batch_size: int,
    *,
    views: int = 1,
    tokens: bool = True,
    asked: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> FeatureCache:
    """Features of a split, from the cache as far as they are there.

    Args:
        backbone: gives them.
        images: the split.
        options: where they are kept.
        batch_size: images per step.
        views: of which tokens are kept.
        tokens: whether these are wanted at all.
        asked: what the command was asked for, plain values. It tells folders of the cache apart; whether what lies
            there was made from the same weights and images is seen by their hashes.
        progress: see `extract_features`.
    """
    names = {"split": images.identity["split"][0], "views": views, "dtype": options.dtype, "layers": backbone.layers}
    key = short_hash({**asked, **names, "preprocessing": backbone.preprocessing, "autocast": str(backbone.amp_dtype)})
    return extract_features(
        backbone,
        images,
        options.cache.expanduser() / f"{slug(backbone.name)}-{names['split']}-{key}",
        token_budget_gb=options.token_budget_gb if tokens else 0.0,
        views=views,
        dtype=options.dtype,
        batch_size=batch_size,
        progress=progress,
    )


def choose_source(
    cache: FeatureCache, backbone: Backbone, images: SplitImages, layers: Sequence[Layer], views: int, tokens: bool
) -> FeatureSource:
    """Where heads get tokens from: nowhere if pooled vectors do, the cache if they are there, else the backbone."""
    if not tokens:
        return pooled_tokens(LayerFeatures(cache, layers))
    if cache.views:
        return CachedFeatures(cache, layers)
    return OnlineFeatures(cache, backbone, images, layers, augment=views > 1)


def pooled_tokens(features: Any) -> TensorFeatures:
    """The class token, where there is one, and the mean patch in place of all tokens.

    For heads that take the mean of their tokens these are the same, and need no more than the pooled vectors.
    """
    has_cls = features.num_prefix_tokens > features.num_reg_tokens
    kinds = ("cls", "gap") if has_cls else ("gap",)
    return TensorFeatures(
        torch.stack([features.pooled(kind) for kind in kinds], dim=1), features.targets, num_prefix_tokens=int(has_cls)
    )


def short_hash(values: Any) -> str:
    """Hash of plain values, for names of files."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()


def slug(name: str) -> str:
    """A name as part of a file's: what else than letters, digits, dots and hyphens it has becomes an underscore."""
    return re.sub(r"[^\w.-]+", "_", name)
