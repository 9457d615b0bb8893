"""Transforms from an image to a tensor: timm's, and a crop for small images."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose, RandomCrop, Resize  # type: ignore[import-untyped]
from torchvision.transforms.functional import center_crop, get_dimensions  # type: ignore[import-untyped]

from visionattn.data.errors import DataError
from visionattn.data.normalisation import Normalisation

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
ERASURES = ("const", "rand", "pixel")
MAX_SIZE = 16384
"""Pixels of an image's edge: a single image of that size takes 3 GB, as numbers in single precision."""


def image_transform(preprocessing: Mapping[str, Any], augmentation: Mapping[str, Any] | None = None) -> Compose:
    """Build a transform from images to normalised tensors [C, H, W]; the arguments are those of `pixel_transform`."""
    pixels = pixel_transform(preprocessing, augmentation)
    return Compose([*pixels.transforms, Normalisation.of(preprocessing).normalise_bytes])


def pixel_transform(preprocessing: Mapping[str, Any], augmentation: Mapping[str, Any] | None = None) -> Compose:
    """Build a transform from images to tensors [C, H, W], as loaders use it.

    The tensors are bytes, which a batch normalises on its device; with random erasing, normalised floats.

    Args:
        preprocessing: ``input_size`` (C, H, W), ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode``.
        augmentation: for training: timm's options, ``crop_padding`` and ``crop_from``; None for evaluation.

    Raises:
        DataError: an option does not fit.
    """
    size, mean, std = (preprocessing[key] for key in ("input_size", "mean", "std"))
    training = augmentation is not None
    options = dict(augmentation or {key: preprocessing[key] for key in ("interpolation", "crop_pct", "crop_mode")})
    padding, edge = options.pop("crop_padding", 0), options.pop("crop_from", None)
    arrays = size[0] not in (1, 3)
    if arrays and training:
        options["color_jitter"] = None
    chance, count, mode = options.pop("re_prob", 0), options.pop("re_count", 1), options.pop("re_mode", "pixel")
    try:
        transform = create_transform(
            size, is_training=training, mean=mean, std=std, use_prefetcher=False, normalize=False, **options
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise DataError(f"augmentation options {options}: {type(error).__name__} {error}") from error
    crops_first = isinstance(transform.transforms[0], RandomResizedCropAndInterpolation)
    if not crops_first and (training or preprocessing["crop_mode"] != "squash"):
        transform.transforms.insert(0, MiddlePart())
    if padding or edge:
        assert isinstance(transform.transforms[0], RandomResizedCropAndInterpolation)
        transform.transforms[0] = plain_crop(size[1:], edge, padding, preprocessing["interpolation"])
    erase = [] if options.get("no_aug") else erasing(preprocessing, chance, max_count=count, mode=mode)
    if arrays:
        transform.transforms.insert(0, torch.tensor)  # a copy, as arrays of Pillow are read-only
        erase = erase or [Normalisation.of(preprocessing).normalise_floats]
    transform.transforms += erase
    return transform


def erasing(preprocessing: Mapping[str, Any], probability: float, **options: Any) -> list[Any]:
    """Return the steps that normalise tensors and erase parts of them, with timm's options; none if never."""
    if not probability:
        return []
    # What is erased becomes zero or noise of normalised values.
    return [Normalisation.of(preprocessing), RandomErasing(probability, device="cpu", **options)]


class MiddlePart:
    """Transform that cuts very long images down to their middle, the only part that a crop keeps.

    Resized by their shorter edge, they would fill the memory: 1×5000 pixels become 256×1,280,000. By the longer one,
    nothing would be left of them.

    Args:
        aspect: largest ratio of the longer to the shorter edge that is not cut.
    """

    def __init__(self, aspect: int = 20) -> None:
        self.aspect = aspect

    def __call__(self, image: Any) -> Any:
        """Return the image, of Pillow or a tensor, or its middle."""
        _, *size = get_dimensions(image)
        longest = self.aspect * min(size)
        return image if max(size) <= longest else center_crop(image, [min(longest, edge) for edge in size])


def plain_crop(size: tuple[int, int], edge: int | None, padding: int, interpolation: str) -> Compose:
    """Build a transform that resizes, pads by mirroring and crops at random, without changes of scale.

    Args:
        size: height and width of the crop.
        edge: the shorter edge of the resized image; None for that of a square crop, or else for the size of the crop.
        padding: pixels added on each side.
        interpolation: interpolation of the resizing, which does not touch images of the right size.
    """
    whole = size[0] if size[0] == size[1] else size
    resize = Resize(edge or whole, interpolation=str_to_interp_mode(interpolation))
    return Compose([MiddlePart(), resize, RandomCrop(size, padding=padding, padding_mode="symmetric")])
