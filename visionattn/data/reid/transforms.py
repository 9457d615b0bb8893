"""Transform from an image of a person or vehicle to a tensor, which cuts off a few pixels at most."""

from collections.abc import Mapping
from typing import Any

from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import (  # type: ignore[import-untyped]
    Compose,
    PILToTensor,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
)

from visionattn.data.transforms import erasing


def reid_transform(preprocessing: Mapping[str, Any], augmentation: Mapping[str, Any] | None = None) -> Compose:
    """Build a transform from images to tensors [C, H, W] that keeps the whole image, whatever its aspect.

    The tensors are bytes; with random erasing, normalised floats.

    Args:
        preprocessing: ``input_size`` (C, H, W), ``mean``, ``std`` and ``interpolation``.
        augmentation: for training: ``hflip`` and ``re_prob``, probabilities; ``padding``, the black pixels on each side
            of which a random crop takes its share; ``re_mode``, timm's. None for evaluation.
    """
    size = preprocessing["input_size"][1:]
    resize = Resize(size, interpolation=str_to_interp_mode(preprocessing["interpolation"]))
    if augmentation is None:
        return Compose([resize, PILToTensor()])
    flip = RandomHorizontalFlip(augmentation["hflip"])
    crop = [RandomCrop(size, padding=augmentation["padding"])] if augmentation["padding"] else []
    erase = erasing(preprocessing, augmentation["re_prob"], max_area=0.4, mode=augmentation["re_mode"])
    return Compose([resize, flip, *crop, PILToTensor(), *erase])
