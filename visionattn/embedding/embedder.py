"""Features of images by a frozen model: of any number, in parts that resume after a kill."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import timm
import torch

from visionattn.checks import check_range
from visionattn.data.file_sources import list_images
from visionattn.data.images import image_mode
from visionattn.data.loading import OnError
from visionattn.data.module import usual_workers
from visionattn.data.own_transform import warn_of_own_transform
from visionattn.embedding.files import Embeddings, Features, check_format, write
from visionattn.embedding.images import ImageFiles
from visionattn.errors import UserError
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.source import LoadedModel, load_model
from visionattn.io import as_text
from visionattn.probing.features.cache import only_user
from visionattn.probing.features.extraction import FeatureCache, extract_features
from visionattn.probing.features.splits import freeze, prepare
from visionattn.probing.frozen import Layer, weights_hash
from visionattn.probing.options import ProbingData
from visionattn.progress import ShowProgress, no_progress
from visionattn.training.preprocessing import describe_preprocessing

Pooling = Literal["cls", "gap", "tokens"]
"""Features of an image: the class token, the mean of the patches, or all tokens of the layer."""

Dtype = Literal["float16", "float32"]


class EmbedderOptions(TypedDict, total=False):
    """Options of an `Embedder` but for `normalize`."""

    layer: Layer
    pooling: Pooling | None
    img_size: int | None
    device: str | torch.device
    precision: Precision
    batch_size: int
    num_workers: int | None
    on_error: OnError
    progress: ShowProgress


class Embedder:
    """A frozen model, the features to take from it, and how image files are read.

    Attributes:
        backbone: The model, on its device.
        device: The device.
        about: All that features depend on except the images, in plain values.
        shape: Shape of the features of an image, (dim,) or (num_tokens, dim).
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
        batch_size: int = 64,
        num_workers: int | None = None,
        on_error: OnError = "skip",
        progress: ShowProgress = no_progress,
    ) -> None:
        """Freeze a model.

        Args:
            loaded: The model; if it has a classifier, a copy without it is frozen.
            layer: Number of a block (in hierarchical models, of a stage), from the last if negative; or "last".
            pooling: "cls", "gap" or "tokens"; by default the class token if there is one, else the mean patch.
            normalize: Whether to scale features to length 1.
            img_size: Height and width of images, by default those of the weights.
            device: auto, cpu, cuda, cuda:1, …
            precision: Precision of the model.
            batch_size: Images per step.
            num_workers: Loader processes, by default the number of cores, at most 8, and 0 for a single batch.
            on_error: Treatment of images that cannot be read: "skip" leaves them out, "raise" stops.
            progress: Shows the number of images.

        Raises:
            ValueError: The model has no such features, or a number is out of its bounds.
        """
        check_range("batch_size", batch_size, 1, error=UserError)
        check_range("num_workers", num_workers, 0, error=UserError)
        self.batch_size, self.num_workers, self.on_error, self.progress = batch_size, num_workers, on_error, progress
        if loaded.origin.weights == "probe":
            raise UserError(f"{loaded.name} is a head on a frozen backbone: give the backbone, by its name or file")
        spec = loaded.spec
        warn_of_own_transform(spec.preprocessing, None)
        preprocessing = prepare(spec, ProbingData(img_size=img_size))
        self.device = resolve_device(device)
        self.backbone = freeze(loaded, [layer], preprocessing, self.device, precision)
        ((self.layer, layout),) = self.backbone.layouts.items()
        self.pooling: Pooling = pooling or ("cls" if layout.has_cls else "gap")
        if self.pooling == "cls" and not layout.has_cls:
            raise UserError(f"--pooling cls: {spec.model} has no class token there; take gap")
        self.normalize = normalize
        self.shape = (layout.num_tokens, layout.dim) if self.pooling == "tokens" else (layout.dim,)
        self.preparation = describe_preprocessing(preprocessing, spec.preprocessing, loaded.name)
        checkpoint = loaded.origin.checkpoint
        about = {
            "model": spec.model,
            "model_kwargs": spec.model_kwargs,
            "checkpoint": checkpoint and str(Path(checkpoint).resolve()),
            "origin": loaded.origin.weights,
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

    def list_images(self, places: str | Path | Iterable[str | Path]) -> list[str]:
        """Return the paths of images of the model's number of channels, as `visionattn.data.file_sources.list_images`.

        One place may stand alone.
        """
        channels = self.backbone.preprocessing["input_size"][0]
        places = [places] if isinstance(places, str | Path) else places
        return list_images(places, arrays=isinstance(image_mode(channels), int))

    @contextmanager
    def extract(
        self, files: Sequence[str], folder: Path | None = None, dtype: Dtype = "float32", *, may_be_none: bool = False
    ) -> Iterator["Extracted"]:
        """Extract the features of files to a folder, which is removed at the end of a block without an error.

        Args:
            files: The images.
            folder: The folder, from which an interrupted extraction resumes; by default a temporary one.
            dtype: Type of the features.
            may_be_none: Whether it is no error that not one image can be read.

        Raises:
            OSError: An image cannot be read and must not be left out, or the disk is full.
            ValueError: Not one image can be read.
        """
        workers = self.num_workers
        if workers is None:
            workers = usual_workers() if len(files) > self.batch_size else 0
        images = ImageFiles(files, self.backbone.preprocessing, workers, self.on_error)
        with ExitStack() as stack:
            folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="visionattn-")))
            stack.enter_context(only_user(folder))
            with self.progress(f"features of {self.backbone.name}", "images") as report:
                cache = extract_features(
                    self.backbone,
                    images,
                    folder,
                    token_budget_gb=float("inf") if self.pooling == "tokens" else 0.0,
                    dtype=dtype,
                    batch_size=self.batch_size,
                    progress=report,
                )
            rows = cache.indices.tolist()
            found = Extracted(self, [files[row] for row in rows], images.unreadable(rows), cache, np.dtype(dtype))
            if rows or may_be_none:
                yield found
            shutil.rmtree(folder)
            if not rows and not may_be_none:
                raise UserError(f"not one image could be read: {found.unreadable[0]}")


@dataclass(frozen=True, eq=False)
class Extracted:
    """Features of files on disk.

    Attributes:
        embedder: The model that gave them.
        files: The files that could be read.
        unreadable: A line for each file that could not be read.
        cache: The features, not normalised.
        dtype: Type of the features.
    """

    embedder: Embedder
    files: list[str]
    unreadable: list[str]
    cache: FeatureCache
    dtype: np.dtype[Any]

    def parts(self) -> Iterator[Features]:
        """Yield the features `[n, *shape]` of all files in order, some thousands at a time."""
        for part in self.cache.shards(self.embedder.layer, self.embedder.pooling):
            if self.embedder.normalize:
                values = part.astype(np.float32)
                part = values / np.linalg.norm(values, axis=-1, keepdims=True).clip(1e-12)
            yield part.astype(self.dtype, copy=False)

    def array(self) -> Features:
        """Return the features of all files `[N, *shape]` in memory."""
        return np.concatenate([*self.parts()])


def embed(
    model: str | Path | LoadedModel,
    images: str | Path | Iterable[str | Path],
    *,
    normalize: bool = False,
    dtype: Dtype = "float32",
    **options: Unpack[EmbedderOptions],
) -> Embeddings:
    """Return the features of images.

    Args:
        model: Name of a registered model, path of a checkpoint, or what `visionattn.load_model` returns.
        images: Images, or folders of images at any depth.
        normalize: Whether to scale features to length 1.
        dtype: Type of the features.
        **options: Options of `Embedder`, such as ``layer``, ``pooling``, ``device`` and ``batch_size``.

    Raises:
        OSError: An image cannot be read and ``on_error`` is "raise".
        ValueError: An unknown model, no images, or features that the model does not have.
    """
    embedder = Embedder(as_loaded(model), normalize=normalize, **options)
    with embedder.extract(embedder.list_images(images), dtype=dtype) as found:
        return Embeddings([*map(as_text, found.files)], found.array(), embedder.about)


def embed_to_file(
    path: str | Path, embedder: Embedder, images: Iterable[str | Path], dtype: Dtype = "float32"
) -> Extracted:
    """Write the features of images to a file, in constant memory; resume after a kill from ``PATH.part``.

    Args:
        path: An `.npz` or `.parquet` file, which `Embeddings.load` reads.
        embedder: The model.
        images: Images, and folders of images at any depth.
        dtype: Type of the features.

    Returns:
        The names of the files; the features themselves are in the file alone.

    Raises:
        OSError: An image cannot be read and must not be left out, or the disk is full.
        ValueError: Another suffix, no images, or pyarrow is missing.
    """
    check_format(path)
    with embedder.extract(embedder.list_images(images), part_of(path), dtype) as found:
        write(path, [*map(as_text, found.files)], found.parts(), embedder.shape, found.dtype, embedder.about)
    return found


def part_of(path: str | Path) -> Path:
    """Return the folder of unfinished work for a file."""
    return Path(f"{Path(path).expanduser()}.part")


def as_loaded(model: str | Path | LoadedModel) -> LoadedModel:
    """Return a model that may be named."""
    return model if isinstance(model, LoadedModel) else load_model(model)
