"""Checks of the options of preprocessing and augmentation, which the DataModules share."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms import Compose  # type: ignore[import-untyped]

from visionattn.checks import check_choice, check_range
from visionattn.data.errors import DataError
from visionattn.data.own_transform import KEY as OWN_TRANSFORM
from visionattn.data.own_transform import OwnTransform
from visionattn.data.sequences import PixelSequence, SequenceKind, pixel_sequence
from visionattn.data.transforms import CROP_MODES, ERASURES, INTERPOLATIONS, MAX_SIZE, pixel_transform

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

ImageSize = int | tuple[int, int]
"""Edge of a square image in pixels, or height and width."""

AUGMENTATIONS = {
    "hflip": (0, 1),
    "vflip": (0, 1),
    "color_jitter": (0, math.inf),
    "re_prob": (0, 1),
    "re_count": (1, math.inf),
    "crop_from": (1, MAX_SIZE),
    "padding": (0, math.inf),
}
"""Bounds of the augmentation options that are numbers."""


ARRAY_OPTIONS: dict[str, tuple[str, ...]] = {
    "interpolation": ("nearest", "bilinear", "bicubic"),
    "train_interpolation": ("nearest", "bilinear", "bicubic", "random"),
    "crop_mode": ("center", "squash"),
    "auto_augment": (),
}
"""Values that options can have with arrays, images of other than 1 or 3 channels; torchvision does less on these."""

TRANSFORM_OPTIONS = (
    *("scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment", "re_prob", "re_mode", "re_count"),
    *("no_aug", "crop_padding", "crop_from"),
)
"""Options of `Preparation` that go to the transform of training images under their own names."""


@dataclass(frozen=True)
class Preparation:
    """Size, normalisation and augmentation of images.

    Args:
        img_size: height and width in pixels, or one number for both; by default 32 for digits, 28 for mnist, 64×32 for
            dominoes and 224 otherwise.
        in_chans: 3 for colour, the default, 1 for grey. With another number, images are arrays of that many channels:
            .npy and .npz files, TIFF files of several pages or of that many samples per pixel, RGBA images for 4.
        sequence: yield images as sequences of pixels, maps [C, 1, H·W]: ``pixels`` row by row, or ``permuted`` in the
            random order of ``permutation_seed``, the same for all images.
        permutation_seed: seed of that order.
        mean: mean of each channel, by default ImageNet's.
        std: standard deviation of each channel, by default ImageNet's; for other than 1 or 3 channels, both
            are averages of ImageNet's.
        interpolation: interpolation in evaluation: ``bicubic`` (the default), ``bilinear``, ``nearest``, ….
        crop_pct: share of the resized image's edge that evaluation keeps, by default 0.875.
        crop_mode: ``center`` (the default), ``squash`` or ``border``, as in timm.
        no_aug: train on resized images without augmentation.
        train_interpolation: interpolation in training, as above, or ``random``.
        crop_padding: pad training images by this number of mirrored pixels and crop at random, in place of ``scale``,
            ``ratio`` and ``train_interpolation``; 0 for no padding.
        crop_from: resize the shorter edge of training images to this number of pixels and crop at random, in place of
            the same options; with ``crop_padding`` by default ``img_size``.
        scale: smallest and largest share of the area that a random crop keeps.
        ratio: smallest and largest width over height of a random crop.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        color_jitter: strength of changes in brightness, contrast and saturation, of images of 1 or 3 channels;
            ``auto_augment`` disables it.
        auto_augment: timm's string for RandAugment, AutoAugment or AugMix, e.g. ``rand-m9-mstd0.5-inc1``.
        re_prob: probability of random erasing.
        re_mode: content of erased rectangles: ``const`` (zeros), ``rand`` (one colour) or ``pixel`` (noise).
        re_count: largest number of erased rectangles.
        transform: import path of your own transform in place of all of these, such as ``my_package.transforms.make``: a
            function ``make(preprocessing, training)`` that returns a callable from an image to a tensor [C, H, W], or
            such a callable. Bytes are normalised later; floats are taken as normalised.
        train_transform: the same for training images only; by default ``transform``.

    Raises:
        DataError: a value out of its bounds, or two that exclude each other.
    """

    img_size: ImageSize | None = None
    in_chans: int | None = None
    sequence: SequenceKind | None = None
    permutation_seed: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    no_aug: bool = False
    train_interpolation: str = "random"
    crop_padding: int = 0
    crop_from: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    auto_augment: str | None = None
    re_prob: float = 0.0
    re_mode: str = "pixel"
    re_count: int = 1
    transform: str | None = None
    train_transform: str | None = None

    def preprocessing(self, size: ImageSize) -> dict[str, Any]:
        """Return the preprocessing as timm names it, of images of this size unless `img_size` says another."""
        in_chans = 3 if self.in_chans is None else self.in_chans
        height, width = height_and_width(size if self.img_size is None else self.img_size)
        for edge in (height, width):
            check_range("data.img_size", edge, 1, MAX_SIZE, error=DataError)
        check_range("data.in_chans", in_chans, 1, error=DataError)
        if in_chans not in (1, 3):
            self._check_array_options()
        given = (self.mean, self.std, self.interpolation, self.crop_pct, self.crop_mode)
        prepared = make_preprocessing((in_chans, height, width), *given)
        self.to_sequence(prepared["input_size"])  # checks its options
        # timm's configuration knows nothing of sequences: other images do without these.
        sequence = {"sequence": self.sequence, "permutation_seed": self.permutation_seed}
        prepared |= {} if self.sequence is None else sequence
        return prepared if self.transform is None else prepared | {OWN_TRANSFORM: self.transform}

    def make_transform(self, preprocessing: Mapping[str, Any], training: bool) -> Callable[[Any], Tensor]:
        """Return the transform of an image to a tensor [C, H, W], as loaders use it.

        Raises:
            DataError: the user's own transform cannot be imported, or does not return such a tensor.
        """
        options = ("train_transform", "transform") if training else ("transform",)
        own = next((option for option in options if getattr(self, option) is not None), None)
        to_sequence = self.to_sequence(preprocessing["input_size"])
        if own is not None:
            transform: Any = OwnTransform(own, getattr(self, own), preprocessing, training)
        else:
            augmentation = self.augmentation(max(preprocessing["input_size"][1:])) if training else None
            transform = pixel_transform(preprocessing, augmentation)
        return transform if to_sequence is None else Compose([transform, to_sequence])

    def _check_array_options(self) -> None:
        for name, allowed in ARRAY_OPTIONS.items():
            if (value := getattr(self, name)) not in (None, *allowed):
                remedy = f"choose one of {', '.join(allowed)}" if allowed else "leave it out"
                raise DataError(
                    f"--data.{name} {value} is for images of 1 or 3 channels, not of {self.in_chans}: {remedy}"
                )

    def augmentation(self, size: int) -> dict[str, Any]:
        """Return the augmentation of images whose longer edge has `size` pixels, as `image_transform` takes it."""
        taken = {name: getattr(self, name) for name in TRANSFORM_OPTIONS}
        augmentation = {**taken, "interpolation": self.train_interpolation}
        check_augmentation(augmentation, size)
        return augmentation

    def to_sequence(self, input_size: tuple[int, int, int]) -> PixelSequence | None:
        """Return the transform of images (C, H, W) to sequences of pixels, if there is one."""
        return pixel_sequence(self.sequence, self.permutation_seed, input_size[1] * input_size[2])


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """Return height and width of images, given as both or as one number.

    Raises:
        DataError: there are other than two numbers.
    """
    edges = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(edges) != 2:
        raise DataError(f"--data.img_size is one number, or height and width, got {list(edges)}")
    return edges


def make_preprocessing(
    input_size: tuple[int, int, int],
    mean: list[float] | None,
    std: list[float] | None,
    interpolation: str | None,
    crop_pct: float | None = 1.0,
    crop_mode: str | None = None,
    *,
    crop_modes: Collection[str] = CROP_MODES,
    statistics: Statistics = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
) -> dict[str, Any]:
    """Return the preprocessing as timm names it; the options are those of the DataModules, and None takes a default.

    Raises:
        DataError: a value out of its bounds.
    """
    crop_pct = 0.875 if crop_pct is None else crop_pct
    check_range("data.crop_pct", crop_pct, 0.05, 2, error=DataError)
    check_choice("data.interpolation", interpolation, INTERPOLATIONS, error=DataError)
    check_choice("data.crop_mode", crop_mode, crop_modes, error=DataError)
    return {
        "input_size": input_size,
        "mean": per_channel(mean, statistics[0], "mean", input_size[0]),
        "std": per_channel(std, statistics[1], "std", input_size[0]),
        "interpolation": interpolation or "bicubic",
        "crop_pct": crop_pct,
        "crop_mode": crop_mode or "center",
    }


def check_augmentation(options: Mapping[str, Any], size: int) -> None:
    """Check the augmentation options that a DataModule has, for images whose longer edge has ``size`` pixels.

    Raises:
        DataError: a value out of its bounds, or two that exclude each other.
    """
    for option, (low, high) in AUGMENTATIONS.items():
        check_range(f"data.{option}", options.get(option), low, high, error=DataError)
    choices = (*INTERPOLATIONS, "random")
    check_choice("data.train_interpolation", options.get("interpolation"), choices, error=DataError)
    check_choice("data.re_mode", options.get("re_mode"), ERASURES, error=DataError)
    for option, most in (("scale", 1), ("ratio", math.inf)):
        low, high = options.get(option, (1, 1))
        if not 0 < low <= high <= most:
            bounds = "above 0" if most == math.inf else f"above 0 and at most {most}"
            raise DataError(f"--data.{option} must be two numbers {bounds}, the smaller first, got {low}, {high}")
    no_aug, padding, crop_from = (options.get(option) for option in ("no_aug", "crop_padding", "crop_from"))
    if padding and (padding < 0 or no_aug):
        raise DataError(
            f"--data.crop_padding {padding} must be at least 0, and is an augmentation: not with --data.no_aug"
        )
    if crop_from is not None and (no_aug or crop_from < size):
        raise DataError(
            f"--data.crop_from {crop_from} must be at least --data.img_size {size}, and is an augmentation: "
            "not with --data.no_aug"
        )


def per_channel(
    given: list[float] | None, default: tuple[float, ...], what: str, channels: int = 3
) -> tuple[float, ...]:
    """Return a mean or standard deviation of each channel; a default for other channels is averaged.

    Raises:
        DataError: other than one value for each.
    """
    if given is None:
        return default if channels == len(default) else (sum(default) / len(default),) * channels
    if len(given) != channels:
        raise DataError(f"--data.{what} must have {channels} values, got {list(given)}: one for each channel")
    # Values of images lie between 0 and 1, those of arrays anywhere.
    low, high = (0, 1) if channels in (1, 3) else (0 if what == "std" else -math.inf, math.inf)
    for value in given:
        check_range(f"data.{what}", value, low, high, above=what == "std", error=DataError)
    return tuple(given)
