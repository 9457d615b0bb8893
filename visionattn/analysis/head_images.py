"""Images on which heads are studied: the same images, in the same batches, in each pass over them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from visionattn.data.loading import ImageDataset, ImageLoader
from visionattn.data.sampling import Draw
from visionattn.errors import UserError
from visionattn.evaluation.as_trained import ImageOptions, open_images, prepare_images
from visionattn.evaluation.drawing import spread
from visionattn.evaluation.source import LoadedModel
from visionattn.training.preprocessing import describe_preprocessing


class ImageBatch(Protocol):
    """A batch with normalised images `[B, C, H, W]`, whatever else it holds."""

    @property
    def image(self) -> Tensor:
        """The images."""


class HeadBatch(NamedTuple):
    """A batch of images.

    Attributes:
        image: Normalised images `[B, C, H, W]`.
        target: Classes `[B]`; None if images have none.
        name: B file names.
    """

    image: Tensor
    target: Tensor | None
    name: list[str]


@dataclass(frozen=True)
class HeadImages:
    """Images for a study of heads, which can be gone through any number of times.

    Attributes:
        data: The data module.
        loader: Reads the images in order.
        num_images: Number of images, also of those that cannot be read.
        has_classes: True if images have classes, which the model knows.
        device: Device of the batches.
        preparation: How images are prepared, in words.
        identity: The images, their order, batches and preprocessing, and the options of their classes, as plain values.
    """

    data: Any
    loader: ImageLoader
    num_images: int
    has_classes: bool
    device: torch.device
    preparation: str
    identity: Any

    def __iter__(self) -> Iterator[HeadBatch]:
        """Yield all batches, without images that cannot be read."""
        for batch in self.loader:
            if len(batch.image):
                moved = batch.to(self.device)
                yield HeadBatch(moved.image, moved.target if self.has_classes else None, batch.name)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.loader)

    @property
    def num_read(self) -> int:
        """Number of images without those that could not be read so far."""
        return self.num_images - len(self.unreadable)

    @property
    def unreadable(self) -> list[str]:
        """Images that could not be read so far, with the reason."""
        return list(self.loader.broken)


def open_head_images(
    loaded: LoadedModel,
    options: ImageOptions,
    num_images: int,
    device: torch.device,
    announce: Callable[[str], object] = lambda line: None,
) -> HeadImages:
    """Open images for a model, with their classes if the model has classes.

    Args:
        loaded: The model.
        options: The images. For a model without classes, `root` is any folder of images.
        num_images: Largest number of images; of more images, this many are taken, evenly spaced.
        device: Device of the batches.
        announce: Called with lines that say how images are prepared, and which are taken.

    Raises:
        DataError: The data are missing, or their classes are not the model's.
        UserError: The data can only be read in order, or the model has several labels per image.
    """
    spec, has_classes = loaded.spec, bool(loaded.spec.num_classes)
    if spec.multi_label:
        raise UserError(
            f"{loaded.name} has several labels for an image, and effects of heads are measured with one: study its "
            f"features, with --model {spec.model} --model_kwargs '{{num_classes: 0}}'"
        )
    if has_classes:
        data = open_images(spec, options)
        loader = data.val_dataloader()
    elif options.root and options.name in (None, "folder"):
        data = open_images(spec, options, "predict", images=[options.root], name="folder")
        loader = data.predict_dataloader()
    else:
        data = open_images(spec, options, "fit")
        loader = data.val_dataloader()
    dataset: Any = loader.dataset
    if not isinstance(dataset, ImageDataset):
        raise UserError(f"{data.name} can only be read in order; give a folder of images, or another data set")
    places = spread(len(dataset), num_images)
    reader = ImageLoader(
        dataset,
        options.on_error,
        spec.num_classes if has_classes else None,
        batch_size=options.batch_size,
        sampler=[Draw(place) for place in places],
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
    )
    preprocessing = prepare_images(spec, options)
    preparation = describe_preprocessing(preprocessing, spec.preprocessing, loaded.name)
    classes = [options.class_map, options.labels, options.label_column]
    identity = [options.batch_size, preprocessing, classes, [dataset.source.name_of(place) for place in places]]
    announce(preparation)
    if len(places) < len(dataset):
        announce(f"{len(places):,} of {len(dataset):,} images, evenly spaced; --num_images sets their number")
    return HeadImages(data, reader, len(places), has_classes, device, preparation, identity)
