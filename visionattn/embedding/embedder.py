"""Features of images by a frozen model: of any number, in parts that resume after a kill."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch

from visionattn.checks import check_range
from visionattn.data.file_sources import list_images
from visionattn.data.loading import OnError
from visionattn.data.module import usual_workers
from visionattn.embedding.files import Embeddings, Features
from visionattn.embedding.images import ImageFiles
from visionattn.errors import UserError
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.source import LoadedModel
from visionattn.io import as_text
from visionattn.probing.features.extraction import FeatureCache, extract_features
from visionattn.probing.features.splits import freeze, prepare
from visionattn.probing.frozen import Layer, weights_hash
from visionattn.probing.options import ProbingData
from visionattn.progress import ShowProgress, no_progress
from visionattn.training.preprocessing import describe_preprocessing

Pooling = Literal["cls", "gap", "tokens"]
"""Features of an image: the class token, the mean of the patches, or all tokens of the layer."""

Dtype = Literal["float16", "float32"]


@dataclass(frozen=True, eq=False)
class Extracted:
    """Features on disk.

    Attributes:
        files: Files that could be read.
        shape: Shape of the features of an image.
        dtype: Their type.
        unreadable: A line for each file that could not be read.
    """

    files: list[str]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unreadable: list[str]
    _cache: FeatureCache
    _layer: Layer
    _pooling: Pooling
    _normalize: bool

    def parts(self) -> Iterator[Features]:
        """Yield the features `[n, *shape]` of all files in order, some thousands at a time."""
        for part in self._cache.shards(self._layer, self._pooling):
            if self._normalize:
                values = part.astype(np.float32)
                part = values / np.linalg.norm(values, axis=-1, keepdims=True).clip(1e-12)
            yield part.astype(self.dtype)

    def array(self) -> Features:
        """Return the features of all files `[N, *shape]` in memory."""
        features = np.empty((len(self.files), *self.shape), self.dtype)
        start = 0
        for part in self.parts():
            features[start : start + len(part)] = part
            start += len(part)
        return features


class Embedder:
    """A frozen model, and the features to take from it.

    Attributes:
        about: Description in plain values, all that features depend on except the images.
        shape: Shape of the features of an image: (dim,), or (num_tokens, dim).
        preparation: Preparation of the images in words.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        layer: Layer = "last",
        pooling: Pooling | None = None,
        normalize: bool = False,
        img_size: int | None = None,
        device: str | torch.device = "auto",
        precision: Precision = "32-true",
    ) -> None:
        """Freeze the model.

        Args:
            loaded: The model; if it has a classifier, it is left out of a copy.
            layer: Number of a block (in hierarchical models, of a stage), from the last if negative; or "last".
            pooling: By default the class token if there is one, else the mean of the patches.
            normalize: Whether features are scaled to length 1.
            img_size: Height and width of images, by default those of the weights.
            device: auto, cpu, cuda, cuda:1, …
            precision: Precision of the model.

        Raises:
            ValueError: The model gives no such features.
        """
        spec = loaded.spec
        wanted = tuple(spec.preprocessing["input_size"])
        preprocessing = prepare(spec, ProbingData(img_size=img_size or max(wanted[1:])))
        if img_size is None:  # images need not be square, as those of data sets to probe are
            preprocessing["input_size"] = wanted
        self.backbone = freeze(loaded, [layer], preprocessing, resolve_device(device), precision)
        ((self.layer, layout),) = self.backbone.layouts.items()
        self.pooling: Pooling = pooling or ("cls" if layout.has_cls else "gap")
        if self.pooling == "cls" and not layout.has_cls:
            raise UserError(f"--pooling cls: {spec.model} has no class token; take gap")
        self.normalize = normalize
        self.shape = (layout.num_tokens, layout.dim) if self.pooling == "tokens" else (layout.dim,)
        self.preparation = describe_preprocessing(preprocessing, spec.preprocessing, loaded.name)
        about = {
            "model": spec.model,
            "model_kwargs": spec.model_kwargs,
            "checkpoint": loaded.origin.checkpoint,
            "weights": weights_hash(self.backbone.model),
            "preprocessing": preprocessing,
            "layer": self.layer,
            "pooling": self.pooling,
            "normalize": normalize,
            "precision": precision,
            "num_prefix_tokens": layout.num_prefix_tokens,
            "grid": layout.grid,
            "timm": timm.__version__,
            "visionattn": version("visionattn"),
        }
        self.about: dict[str, Any] = json.loads(json.dumps(about))

    @contextmanager
    def extract(
        self,
        files: Sequence[str],
        cache: Path | None = None,
        *,
        batch_size: int = 64,
        num_workers: int | None = None,
        on_error: OnError = "skip",
        dtype: Dtype = "float32",
        progress: ShowProgress = no_progress,
    ) -> Iterator[Extracted]:
        """Extract the features of files to a folder, which is removed at the end of a block without an error.

        Args:
            files: The images.
            cache: The folder, from which an interrupted extraction resumes; by default a temporary one.
            batch_size: Images per step.
            num_workers: Loader processes, by default the number of cores, at most 8; 0 for a single batch.
            on_error: Treatment of images that cannot be read: "skip" leaves them out, "raise" stops.
            dtype: Type of the features.
            progress: Shows the number of images.

        Raises:
            OSError: An image cannot be read, or the disk is full.
            ValueError: No image can be read, or a number is out of its bounds.
        """
        check_range("batch_size", batch_size, 1, error=UserError)
        check_range("num_workers", num_workers, 0, error=UserError)
        if num_workers is None:
            num_workers = usual_workers() if len(files) > batch_size else 0
        images = ImageFiles(files, self.backbone.preprocessing, num_workers, on_error)
        with ExitStack() as stack:
            folder = cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="visionattn-")))
            with progress(f"features of {self.backbone.name}", "images") as report:
                found = extract_features(
                    self.backbone,
                    images,
                    folder,
                    token_budget_gb=float("inf") if self.pooling == "tokens" else 0.0,
                    dtype=dtype,
                    batch_size=batch_size,
                    progress=report,
                )
            rows = found.indices.tolist()
            unreadable = images.unreadable(rows)
            if not rows:
                shutil.rmtree(folder)
                raise UserError(f"not one image could be read: {unreadable[0]}")
            readable, kind = [files[row] for row in rows], np.dtype(dtype)
            yield Extracted(readable, self.shape, kind, unreadable, found, self.layer, self.pooling, self.normalize)
            shutil.rmtree(folder)


def embed(model: str | Path | LoadedModel, images: str | Path | Iterable[str | Path], **options: Any) -> Embeddings:
    """Return the features of images.

    Args:
        model: Name of a registered model, path of a checkpoint, or what `visionattn.load_model` returns.
        images: Images, and folders of images at any depth.
        **options: Arguments of `Embedder` and of `Embedder.extract`, such as ``layer``, ``pooling``, ``device``.

    Raises:
        OSError: An image cannot be read and ``on_error`` is "raise".
        ValueError: A model or place that does not exist, or no image can be read.
    """
    embedder, extraction = open_embedder(model, options)
    with embedder.extract(list_images(as_places(images)), **extraction) as found:
        return Embeddings([*map(as_text, found.files)], found.array(), embedder.about)
