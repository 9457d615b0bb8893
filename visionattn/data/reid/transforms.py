"""Transform from an image of a person or vehicle to a tensor, which cuts off a few pixels at most."""

from collections.abc import Mapping
from typing import Any

from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import (  # type: ignore[import-untyped]
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    ToTensor,
)


def reid_transform(preprocessing: Mapping[str, Any], augmentation: Mapping[str, Any] | None = None) -> Compose:
    """Build a transform from images to tensors [C, H, W] that keeps the whole image, whatever its aspect.

    Args:
        preprocessing: ``input_size`` (C, H, W), ``mean``, ``std`` and ``interpolation``.
        augmentation: for training: ``hflip`` and ``re_prob``, probabilities; ``padding``, the black pixels on each side
            of which a random crop takes its share; ``re_mode``, timm's. None for evaluation.
    """
    size = preprocessing["input_size"][1:]
    resize = Resize(size, interpolation=str_to_interp_mode(preprocessing["interpolation"]))
    tensor = [ToTensor(), Normalize(preprocessing["mean"], preprocessing["std"])]
    if augmentation is None:
        return Compose([resize, *tensor])
    flip = RandomHorizontalFlip(augmentation["hflip"])
    crop = [RandomCrop(size, padding=augmentation["padding"])] if augmentation["padding"] else []
    erase = RandomErasing(augmentation["re_prob"], max_area=0.4, mode=augmentation["re_mode"], device="cpu")
    return Compose([resize, flip, *crop, *tensor, erase])
