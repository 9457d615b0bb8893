"""Normalisation of images: loaders yield bytes, a quarter of the memory of floats, and batches normalise them."""

import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import default_collate

Batch = TypeVar("Batch", bound=Any)

FAR = 100
"""Values above are not what a mean and a standard deviation of at most 1 describe."""


@dataclass  # not frozen: Lightning's conversion of batches refuses such members
class Normalisation:
    """Mean and standard deviation of each channel of images whose values lie between 0 and 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any]) -> "Normalisation":
        """Take ``mean`` and ``std`` of a preprocessing."""
        return cls(tuple(preprocessing["mean"]), tuple(preprocessing["std"]))

    def __call__(self, images: Tensor) -> Tensor:
        """Return images [..., C, H, W] normalised, in single precision; bytes are divided by 255 first."""
        # The operations and their order are those of torchvision's ToTensor and Normalize, to the last bit.
        mean, std = _column(self.mean, images.device), _column(self.std, images.device)
        values = images.to(torch.float32, memory_format=torch.contiguous_format)
        # Of bytes this is a copy, changed in place: new memory takes a CPU longer than the arithmetic.
        return (values.div_(255).sub_(mean) if images.dtype == torch.uint8 else values.sub(mean)).div_(std)

    def normalise_bytes(self, images: Tensor) -> Tensor:
        """Normalise images that are bytes; return floats, which are normalised already, as they are."""
        return self(images) if images.dtype == torch.uint8 else images

    def normalise_floats(self, image: Tensor) -> Tensor:
        """Normalise an image that is floats; return bytes as they are.

        Raises:
            ValueError: mean and standard deviation are of values between 0 and 1, those of the image are far above.
        """
        if image.dtype == torch.uint8:
            return image
        if (largest := image.abs().max().item()) > FAR and max(*self.mean, *self.std) <= 1:
            raise ValueError(
                f"its values go up to {largest:.4g}, but mean and std are of values between 0 and 1: pass --data.mean "
                "and --data.std"
            )
        return self(image)


@cache
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a value for each channel, [C, 1, 1]; kept, as a copy to a GPU would wait for the GPU in each step."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def stack_images(images: list[Tensor], normalisation: Normalisation | None) -> Tensor:
    """Return images [C, H, W] as a batch [B, C, H, W]: bytes if all are bytes, otherwise normalised floats."""
    if normalisation is not None and len({image.dtype for image in images}) > 1:
        images = list(map(normalisation.normalise_bytes, images))
    # default_collate lets workers write into the memory that they share with the training.
    batch: Tensor = default_collate(images)
    return batch


def move_batch(batch: Batch, device: torch.device | str) -> Batch:
    """Return a named tuple with its tensors on a device, and its ``image`` normalised by its ``normalisation``."""
    device = torch.device(device)
    there: dict[str, Any] = {"device": device, "non_blocking": device.type == "cuda"}
    tensors = {name: value.to(**there) for name, value in batch._asdict().items() if isinstance(value, Tensor)}
    if batch.normalisation is not None:
        with _threads_beside_workers():
            tensors["image"] = batch.normalisation.normalise_bytes(tensors["image"])
    moved: Batch = batch._replace(**tensors)
    return moved


@contextmanager
def _threads_beside_workers() -> Iterator[None]:
    """Compute on one thread while there are loader workers: several would wait for the cores that the workers hold."""
    threads = torch.get_num_threads()
    if threads == 1 or not multiprocessing.active_children():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
