"""A model and the prepared images that it looks at: what every sheet of `visionattn look` starts from."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from visionattn.data.sampling import Draw
from visionattn.data.unlabelled import Images
from visionattn.errors import UsageError, UserError
from visionattn.evaluation.as_trained import PreparedImages, open_images
from visionattn.evaluation.device import resolve_device
from visionattn.evaluation.drawing import spread
from visionattn.evaluation.source import LoadedModel, find_model
from visionattn.probing.classifier import ProbeClassifier
from visionattn.probing.frozen import Layer
from visionattn.progress import ShowProgress, no_progress
from visionattn.training.preprocessing import describe_preprocessing
from visionattn.words import counted


@dataclass(frozen=True)
class LookOptions:
    """Options of sheets; each kind reads those that it has a use for.

    Attributes:
        blocks: Numbers of blocks, from the last if negative; None for the kind's default.
        heads: Numbers of heads; None for all.
        point: Column and row of the clicked point, as shares of width and height from the upper left corner.
        layer: Number of a block (in hierarchical models, of a stage), from the last if negative, or "last"; None for
            the kind's default.
        class_name: Name or number of the class whose score is explained; by default the predicted one.
        height: Height of an image on the sheet, in pixels.

    Raises:
        UserError: A point outside of the image.
    """

    blocks: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    point: Sequence[float] = (0.5, 0.5)
    layer: Layer | None = None
    class_name: str | None = None
    height: int = 160

    def __post_init__(self) -> None:
        if len(self.point) != 2 or not all(0 <= share <= 1 for share in self.point):
            given = ",".join(f"{share:g}" for share in self.point)
            raise UserError(f"--point takes x,y in shares of width and height, from 0 to 1: 0.5,0.5, not {given}")


class NoSheetError(UserError):
    """The model has no sheet of this kind; the message says why, and what is supported."""


@dataclass(frozen=True)
class Subject:
    """A model and images that are prepared for it.

    Attributes:
        loaded: The model, in evaluation mode, on its device.
        images: Normalised images `[P, C, H, W]` on the same device.
        pixels: The same images as bytes `[P, H, W, 3]`, as the model sees them.
        names: Files of the images.
        progress: Shows the number of images that a sheet is done with.
    """

    loaded: LoadedModel
    images: Tensor
    pixels: Any
    names: list[str]
    progress: ShowProgress = no_progress

    @property
    def model(self) -> Any:
        """The model."""
        return self.loaded.model

    @property
    def network(self) -> Any:
        """The model, or the backbone of a head on a frozen backbone."""
        return _network(self.loaded)

    @property
    def title(self) -> str:
        """Name of the model or its file, for the title of a sheet; it says if weights are random."""
        return f"{Path(self.loaded.name).name}{', random weights' * (self.loaded.origin.weights == 'random')}"

    def one_by_one(self, work: str) -> Iterator[Tensor]:
        """Yield each image as a batch of one, and show the progress of this work."""
        with self.progress(work, "images") as report:
            for number, image in enumerate(self.images.split(1), 1):
                yield image
                report(number, len(self.images))


def prepare_subject(
    loaded: LoadedModel,
    images: str | Path | Image.Image | Images,
    *,
    max_images: int = 16,
    img_size: int | None = None,
    crop_pct: float | None = None,
    device: str = "auto",
    announce: Callable[[str], object] = lambda line: None,
    progress: ShowProgress = no_progress,
) -> Subject:
    """Read images for a model.

    Args:
        loaded: The model; it is moved to the device.
        images: Files and folders, or images in memory; of a folder all images, in all folders below it.
        max_images: Largest number of images; of more images, this many are taken, evenly spaced.
        img_size: Height and width in pixels; by default, as crop_pct, that of the model's preprocessing.
        crop_pct: Part of the resized image's edge that is kept.
        device: auto, cpu, cuda, cuda:1, …
        announce: Called with lines that say how images are prepared, and which are left out.
        progress: Shows the number of images that a sheet is done with.

    Raises:
        DataError: A file or folder that is missing, or a folder without images.
        UserError: Not one image can be read, or the model takes no images of that size.
    """
    from visionattn.viz.image import denormalize

    resolved = resolve_device(device)
    if img_size is not None:
        _resize(loaded, img_size)
    images = cast(Images, [images] if isinstance(images, str | Path | Image.Image) else images)
    options = PreparedImages(img_size=img_size, crop_pct=crop_pct, num_workers=0, on_error="skip")
    data = open_images(loaded.spec, options, "predict", images=images, name="folder")
    announce(describe_preprocessing(data.preprocessing, loaded.spec.preprocessing, loaded.name))
    loader = data.predict_dataloader()
    dataset, collate = cast(Any, loader.dataset), cast(Any, loader.collate_fn)
    places = spread(len(dataset), max_images)
    if len(places) < len(dataset):
        announce(f"{len(places)} of {len(dataset):,} images, evenly spaced; --max_images sets their number")
    batch = collate([dataset[Draw(place)] for place in places]).to("cpu")
    if batch.errors:
        if not len(batch.image):
            raise UserError(f"not one image could be read: {batch.errors[0]}")
        announce(f"{counted(len(batch.errors), 'unreadable image')} left out, the first: {batch.errors[0]}")
    pixels = denormalize(batch.image, data.preprocessing["mean"], data.preprocessing["std"])
    loaded.model.to(resolved)
    return Subject(loaded, batch.image.to(resolved), pixels, batch.name, progress)


def load_random(name: str, model_kwargs: Mapping[str, Any] | None = None, seed: int = 0) -> LoadedModel:
    """Build a registered model with random weights, to compare with; those of a seed are always the same.

    Raises:
        ValueError: An unknown model, or a file.
    """
    source = find_model(name, pretrained=False, model_kwargs=model_kwargs)
    if source.checkpoint is not None:
        raise UsageError(f"--random takes the name of a registered model, not {name}")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", f"{re.escape(name)} has random weights")
        torch.manual_seed(seed)
        return source.load()


def _network(loaded: LoadedModel) -> Any:
    return loaded.model.backbone.model if isinstance(loaded.model, ProbeClassifier) else loaded.model


def _resize(loaded: LoadedModel, img_size: int) -> None:
    """Let a model with position embeddings of a fixed size take images of another one."""
    network = _network(loaded)
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=(img_size, img_size))
