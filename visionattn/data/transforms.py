"""From a Pillow picture to a normalised tensor: timm's transforms, and the crop that small pictures want."""

from collections.abc import Mapping
from typing import Any

from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose, RandomCrop, Resize  # type: ignore[import-untyped]

from visionattn.data.errors import DataError


def picture_transform(preprocessing: Mapping[str, Any], augmentation: Mapping[str, Any] | None = None) -> Compose:
    """A transform from pictures to tensors [C, H, W].

    Args:
        preprocessing: ``input_size`` (C, H, W), ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode``.
        augmentation: for training: timm's options, ``crop_padding`` and ``crop_from``; None for evaluation.

    Raises:
        DataError: an option that does not fit.
    """
    size, mean, std = (preprocessing[key] for key in ("input_size", "mean", "std"))
    training = augmentation is not None
    options = dict(augmentation or {key: preprocessing[key] for key in ("interpolation", "crop_pct", "crop_mode")})
    padding, edge = options.pop("crop_padding", 0), options.pop("crop_from", None)
    try:
        transform = create_transform(size, is_training=training, mean=mean, std=std, use_prefetcher=False, **options)
    except (AssertionError, KeyError, ValueError) as error:
        raise DataError(f"augmentation options {options}: {type(error).__name__} {error}") from error
    if padding or edge:
        assert isinstance(transform.transforms[0], RandomResizedCropAndInterpolation)
        transform.transforms[0] = plain_crop(size[1:], edge or min(size[1:]), padding, preprocessing["interpolation"])
    return transform


def plain_crop(size: tuple[int, int], edge: int, padding: int, interpolation: str) -> Compose:
    """Resizes a picture, mirrors its outermost pixels outwards and crops it at random, without changes of scale.

    Args:
        size: height and width of the crop.
        edge: the shorter edge of the resized picture.
        padding: pixels added on each side.
        interpolation: of the resizing, which leaves pictures of the right size as they are.
    """
    resize = Resize(edge, interpolation=str_to_interp_mode(interpolation))
    return Compose([resize, RandomCrop(size, padding=padding, padding_mode="symmetric")])
