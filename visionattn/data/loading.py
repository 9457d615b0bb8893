"""From a source of pictures to batches of tensors; broken pictures are named, never passed over in silence."""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from timm.data.dataset import IterableImageDataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from visionattn.data.sampling import Draw, seeded
from visionattn.data.sources import Source

OnError = Literal["raise", "skip"]
Transform = Callable[[Image.Image], Tensor]

BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises upon files that are truncated, no pictures, or not there."""

MAX_NEIGHBOURS = 20
"""After so many broken pictures in a row training gives up even when told to skip them."""


class UnreadableImageError(OSError):
    """A picture cannot be decoded."""


class Item(NamedTuple):
    """One picture on its way into a batch; without an image it is broken (``errors`` says so) or a filler."""

    image: Tensor | None  # [C, H, W]
    target: int
    name: str
    errors: tuple[str, ...] = ()
    index: int = -1  # type: ignore[assignment]  # in its source; hides tuple.index, which nobody wants


class Batch(NamedTuple):
    """What every loader yields.

    Attributes:
        image: normalised pictures [B, C, H, W]; B may be smaller than the batch size, and 0, where pictures were left
            out.
        target: class indices [B], -1 where they are unknown.
        name: file names, B of them.
        errors: one line for each broken picture that was met.
    """

    image: Tensor
    target: Tensor
    name: list[str]
    errors: list[str]


class PictureDataset(Dataset[Item]):
    """Reads and transforms single pictures.

    Args:
        source: where they come from.
        transform: from a Pillow image to a tensor [C, H, W].
        replace_broken: a broken picture gives way to the next good one of the source (which in a sorted folder is one
            of the same class); otherwise it comes back without an image.
    """

    def __init__(self, source: Source, transform: Transform, replace_broken: bool = False) -> None:
        self.source, self.transform, self.replace_broken = source, transform, replace_broken

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> Item:
        if draw.picture < 0:
            return Item(None, -1, "")
        errors: list[str] = []
        for offset in range(MAX_NEIGHBOURS if self.replace_broken else 1):
            index = (draw.picture + offset) % len(self.source)
            name = self.source.name_of(index)
            try:
                picture, target = self.source.read(index)
            except BROKEN as error:
                errors.append(f"{name}: {_reason(error)}")
                continue
            with seeded(draw.seed):
                return Item(self.transform(picture), target, name, tuple(errors), index)
        return Item(None, -1, "", tuple(errors))


class StreamDataset(IterableDataset[Item]):
    """The same for data sets that can only be read in order (webdataset, tfds); these treat broken files themselves."""

    def __init__(self, dataset: IterableImageDataset, transform: Transform) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Item]:
        for number, (picture, target) in enumerate(self.dataset.reader):
            yield Item(self.transform(picture), int(target), str(number))


class Collate:
    """Makes a :class:`Batch` of what there is.

    Args:
        input_size: (C, H, W), for batches that turn out empty.
    """

    def __init__(self, input_size: tuple[int, int, int]) -> None:
        self.input_size = input_size

    def __call__(self, items: Sequence[Item]) -> Batch:
        """Stacks the items that have an image."""
        good = [item for item in items if item.image is not None]
        images = [item.image for item in good if item.image is not None]
        return Batch(
            image=torch.stack(images) if images else torch.empty(0, *self.input_size),
            target=torch.tensor([item.target for item in good], dtype=torch.long),
            name=[item.name for item in good],
            errors=[error for item in items for error in item.errors],
        )


class ImageLoader(DataLoader[Any]):
    """A DataLoader of :class:`Batch` es that raises upon a broken picture, or keeps a list of those it met.

    Errors cross from the workers as data: an exception raised there would arrive as a traceback in a string.

    Attributes:
        broken: one line per broken picture met so far (``on_error="skip"``).
    """

    def __init__(self, dataset: Dataset[Any], on_error: OnError = "raise", **options: Any) -> None:
        super().__init__(dataset, **options)
        self.on_error = on_error
        self.broken: dict[str, None] = {}  # an ordered set

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if batch.errors and self.on_error == "raise":
                raise UnreadableImageError(
                    f"cannot read {batch.errors[0]}; repair or remove it, or pass --data.on_error skip"
                )
            self.broken.update(dict.fromkeys(batch.errors))
            if getattr(self.dataset, "replace_broken", False) and not len(batch.image):
                raise UnreadableImageError(f"{len(batch.errors)} unreadable pictures in a row, last {batch.errors[-1]}")
            yield batch


def _reason(error: BaseException) -> str:
    """Why a picture is broken, without its name, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow knows"
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
