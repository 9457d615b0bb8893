"""Checks of the options of preprocessing and augmentation, which the DataModules share."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from visionattn.checks import check_choice, check_range
from visionattn.data.errors import DataError
from visionattn.data.transforms import CROP_MODES, ERASURES, INTERPOLATIONS, MAX_SIZE

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

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
    """Check the augmentation options that a DataModule has, for images with an edge of ``size`` pixels.

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
    for value in given:  # of images whose values lie between 0 and 1
        check_range(f"data.{what}", value, 0, 1, above=what == "std", error=DataError)
    return tuple(given)
