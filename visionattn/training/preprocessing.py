"""Preprocessing that a model expects of its images."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from timm.data.config import resolve_model_data_config
from torch import nn

from visionattn.data.options import per_channel
from visionattn.data.own_transform import KEY

KEYS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
"""Keys of timm's data configuration."""


def model_preprocessing(model: nn.Module) -> dict[str, Any]:
    """Return the preprocessing that the weights of a timm model expect, from `pretrained_cfg`."""
    config: dict[str, Any] = resolve_model_data_config(model)
    return config


def adapt_preprocessing(preprocessing: Mapping[str, Any], model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return preprocessing for a model that is built with another `img_size` or `in_chans`.

    Args:
        preprocessing: result of `model_preprocessing`, or preprocessing in a checkpoint.
        model_kwargs: arguments of the model. For another number of channels, mean and std become their averages, as
            timm averages or repeats the weights of the first layer.
    """
    channels, height, width = preprocessing["input_size"]
    channels = model_kwargs.get("in_chans", channels)
    size = model_kwargs.get("img_size") or (height, width)
    averaged = {key: per_channel(None, tuple(preprocessing[key]), key, channels) for key in ("mean", "std")}
    size = (size, size) if isinstance(size, int) else tuple(size)
    return {**preprocessing, **averaged, "input_size": (channels, *size)}


def differing_keys(used: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the keys of `wanted` with other values in `used`; rounded means and deviations count as equal."""
    return [key for key in KEYS if key in wanted and not _same(used[key], wanted[key])]


def describe_preprocessing(used: Mapping[str, Any], wanted: Mapping[str, Any], origin: str) -> str:
    """Return a line that says how images are prepared, for which weights, and what differs.

    The data have the preprocessing `used`; the weights, named `origin`, expect that of `wanted`.
    """
    _, height, width = used["input_size"]
    mean, std = (", ".join(f"{value:.3g}" for value in used[key]) for key in ("mean", "std"))
    crop = f"crop {used['crop_pct']:g} ({used['crop_mode']})"
    differing = differing_keys(used, wanted)
    exception = f", except for {', '.join(differing)}" if differing else ""
    way = f"by {used[KEY]}" if KEY in used else f"{crop}, {used['interpolation']}"
    images = f"images {height}×{width}, {way}, mean {mean}, std {std}"
    return f"{images}, as {origin} wants them{exception}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    return math.isclose(one, other, abs_tol=1e-3) if isinstance(one, float) else bool(one == other)
