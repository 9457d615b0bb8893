"""Loading of batches from a source of images; broken images are always reported by name."""

import multiprocessing
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from timm.data.dataset import IterableImageDataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from visionattn.data.errors import DataError
from visionattn.data.images import upright
from visionattn.data.normalisation import Normalisation, move_batch, stack_images
from visionattn.data.sampling import Draw, generators_kept, seed_generators
from visionattn.data.sources import Source
from visionattn.io import as_text
from visionattn.words import counted

OnError = Literal["raise", "skip"]
Transform = Callable[[Any], Tensor]

BROKEN = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, Image.DecompressionBombError)
"""Errors of Pillow for files that are truncated, not images, or missing."""

SIGTERM_GRACE = 60  # seconds

MAX_NEIGHBOURS = 20
"""Number of broken images in a row after which training stops, even with ``on_error`` skip."""


class UnreadableImageError(OSError):
    """An image cannot be decoded."""


class Item(NamedTuple):
    """One image of a batch; without an image it is broken, as ``errors`` says, or a filler."""

    image: Tensor | None  # [C, H, W], bytes or normalised floats
    target: int | Tensor  # class index, -1 if unknown; or 0 or 1 of each class, [K]
    name: str
    errors: tuple[str, ...] = ()
    index: int = -1  # type: ignore[assignment]  # in its source; hides tuple.index


FILLER = Item(None, -1, "")


class Batch(NamedTuple):
    """A batch, as every loader yields it.

    Attributes:
        image: images [B, C, H, W], bytes or normalised floats; B is smaller than the batch size, or 0, if images were
            left out.
        target: class indices [B], -1 if unknown; if images may have several classes, 0 or 1 of each [B, K], float32.
        name: B file names, in the form of :func:`visionattn.io.as_text`.
        errors: one line for each broken image.
        normalisation: of images that are bytes.
    """

    image: Tensor
    target: Tensor
    name: list[str]
    errors: list[str]
    normalisation: Normalisation | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device, with normalised images; Lightning calls this."""
        return move_batch(self, device)


class ImageDataset(Dataset[Item]):
    """Images of a source, read and transformed one by one.

    Args:
        source: source of the images.
        transform: from an image, as the source reads it, to a tensor [C, H, W].
        replace_broken: replace a broken image by the next good one of the source (in a sorted folder usually one
            of the same class); otherwise its item has no image.
    """

    def __init__(self, source: Source, transform: Transform, replace_broken: bool = False) -> None:
        self.source, self.transform, self.replace_broken = source, transform, replace_broken

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> Item:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[Item]:
        """Return a batch; generators are restored once, as restoring takes much longer than seeding."""
        with nullcontext() if all(draw.seed is None for draw in draws) else generators_kept():
            return [self._read(draw) for draw in draws]

    def _read(self, draw: Draw) -> Item:
        if draw.image < 0:
            return FILLER
        errors: list[str] = []
        for offset in range(MAX_NEIGHBOURS if self.replace_broken else 1):
            index = (draw.image + offset) % len(self.source)
            name = as_text(self.source.name_of(index))
            try:
                image, target = self.source.read(index)
                if draw.seed is not None:
                    seed_generators(draw.seed)
                transformed = self.transform(image)
            except BROKEN as error:
                errors.append(f"{name}: {as_text(_reason(error))}")
                continue
            return Item(transformed, target, name, tuple(errors), index)
        return Item(None, -1, "", tuple(errors))


class StreamDataset(IterableDataset[Item]):
    """Images of a data set that can only be read in order; timm skips broken images with a warning.

    Args:
        dataset: data set of timm.
        transform: from a Pillow image to a tensor [C, H, W].
        training: divide the shards among the processes, and repeat or skip images so that all have the same number,
            as timm does. In evaluation each process reads everything and takes its turn, with a filler at the end if it
            has none, so that each image is evaluated once.
        rank: rank of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        dataset: IterableImageDataset,
        transform: Transform,
        training: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset, self.transform, self.training = dataset, transform, training
        self.turn = (0, 1) if training else (rank, world_size)
        dataset.reader.dist_rank, dataset.reader.dist_num_replicas = (rank, world_size) if training else (0, 1)

    def __len__(self) -> int:
        """Return the images of this process in a training epoch; those to evaluate are counted at the end.

        Raises:
            TypeError: in evaluation, which tells a DataLoader that there is no length.
        """
        if not self.training:
            raise TypeError("the length of a stream is not known")
        return len(self.dataset)

    def __iter__(self) -> Iterator[Item]:
        mine, world = self.turn
        number, item = -1, FILLER
        for number, (image, target) in enumerate(self.dataset.reader):
            if number % world == mine:
                item = Item(self.transform(upright(image)), int(target), str(number))
            if number % world == world - 1:
                yield item
                item = FILLER
        if (number + 1) % world:
            yield item


class Collate:
    """Collation of items to a :class:`Batch` of the images that could be read.

    Args:
        input_size: (C, H, W), for empty batches.
        normalisation: of images that are bytes.
        num_labels: number of classes if images may have several; None for a class index each.
    """

    def __init__(
        self,
        input_size: tuple[int, int, int],
        normalisation: Normalisation | None = None,
        num_labels: int | None = None,
    ) -> None:
        self.input_size, self.normalisation, self.num_labels = input_size, normalisation, num_labels

    def __call__(self, items: Sequence[Item]) -> Batch:
        """Stack the items that have an image."""
        good = [item for item in items if item.image is not None]
        images = [item.image for item in good if item.image is not None]
        return Batch(
            image=stack_images(images, self.normalisation) if images else torch.empty(0, *self.input_size),
            target=self._targets(good),
            name=[item.name for item in good],
            errors=[error for item in items for error in item.errors],
            normalisation=self.normalisation,
        )

    def _targets(self, items: Sequence[Item]) -> Tensor:
        if self.num_labels is None:
            return torch.tensor([item.target for item in items], dtype=torch.long)
        labels = [torch.as_tensor(item.target) for item in items]
        return torch.stack(labels) if labels else torch.empty(0, self.num_labels)


class ImageLoader(DataLoader[Any]):
    """DataLoader of batches as ``collate_fn`` makes them; it raises an error for a broken image, or lists it.

    Workers return errors as data, because an exception would arrive as a traceback in a string.

    Args:
        dataset: data set of items.
        on_error: treatment of broken images.
        num_classes: number of classes, if the targets are classes.
        **options: options of ``DataLoader``.

    Attributes:
        broken: one line per broken image so far (``on_error="skip"``).
    """

    def __init__(
        self, dataset: Dataset[Any], on_error: OnError = "raise", num_classes: int | None = None, **options: Any
    ) -> None:
        super().__init__(dataset, **options)
        self.on_error, self.num_classes = on_error, num_classes
        self.broken: dict[str, None] = {}  # an ordered set

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.num_workers and multiprocessing.get_start_method() == "forkserver":
            # Without this, each worker imports the package and all that it needs, which takes seconds.
            multiprocessing.set_forkserver_preload(["__main__", "visionattn.data"])
        with sigterm_blocked():
            batches = super().__iter__()
        for batch in batches:
            if batch.errors and self.on_error == "raise":
                raise UnreadableImageError(
                    f"cannot read {batch.errors[0]}; repair or remove it, or pass --data.on_error skip"
                )
            self._check_targets(batch)
            self.broken.update(dict.fromkeys(batch.errors))
            if getattr(self.dataset, "replace_broken", False) and not len(batch.image):
                broken = counted(len(set(batch.errors)), "unreadable image")
                raise UnreadableImageError(f"{broken} in a row, last {batch.errors[-1]}")
            yield batch

    def one_by_one(self, places: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Read images by their places, as batches of one; unreadable images are left out.

        Yields:
            The place, and the batch on the CPU, with a normalised image.
        """
        assert self.collate_fn is not None
        for place in places:
            batch = self.collate_fn([self.dataset[Draw(place)]])
            if len(batch.image):
                yield place, batch.to("cpu")

    def _check_targets(self, batch: Batch) -> None:
        """Check class indices, which on GPUs would end in an error without a reason."""
        if self.num_classes is None or batch.target.ndim > 1:
            return
        for name, target in zip(batch.name, batch.target.tolist(), strict=True):
            if not 0 <= target < self.num_classes:
                raise DataError(
                    f"{name} is of class {target}, where classes are 0 to {self.num_classes - 1}: correct its label, "
                    "or choose a split that has labels"
                )


@contextmanager
def sigterm_blocked() -> Iterator[None]:
    """Block SIGTERM in this thread, and so in the processes that it forks and in threads that libraries start in them.

    Some, such as gRPC, start threads in a forked process at once. One that does not block SIGTERM would receive it in
    place of the thread of :func:`start_worker`, and end the process.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(also: Callable[[int], None] | None, worker: int) -> None:
    """Initialise a loader worker, which ignores a SIGTERM for a while unless its parent sent it.

    A scheduler that ends a job sends SIGTERM to all of its processes. The training needs images until it has reached
    the end of a batch and written its checkpoint. The parent sends SIGTERM when it ends, and waits.

    Args:
        also: another function to call in the worker, with its number.
        worker: number of the worker.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on every system; it returns the sender of a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        parent = multiprocessing.parent_process()  # by os.getppid() it is the fork server, if there is one
        assert parent is not None
        threading.Thread(target=_await_sigterm, args=(parent.pid,), daemon=True).start()
    if also is not None:
        also(worker)


def _await_sigterm(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        signal.alarm(SIGTERM_GRACE)
    os._exit(0)


def _reason(error: BaseException) -> str:
    """Return in one line why an image is broken, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels: scale it down"
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
