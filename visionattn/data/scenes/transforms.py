"""From a scene to tensors: the image and its segments are resized, cut and flipped together."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import str_to_pil_interp
from torch import Tensor

from visionattn.data.scenes.scene import Scene

CropMode = Literal["center", "squash"]
CROP_MODES: tuple[CropMode, ...] = ("center", "squash")


class SceneTensors(NamedTuple):
    """A scene for a model.

    Attributes:
        image: `[3, H, W]`, bytes.
        segments: Ids `[H, W]`, int64. Some segments may have no position.
        classes: `[S + 1]`, as of the scene.
        things: `[S + 1]`, as of the scene.
    """

    image: Tensor
    segments: Tensor
    classes: Tensor
    things: Tensor


class SceneTransform:
    """Transform that brings scenes to one size without mixing ids.

    Args:
        preprocessing: `input_size` (3, H, W), `interpolation` of the image, and `crop_mode`: `center` resizes to cover
            the wanted size and crops the middle, `squash` keeps everything and changes the aspect.
        hflip: Probability of a horizontal flip.

    Raises:
        ValueError: Another `crop_mode`.
    """

    def __init__(self, preprocessing: Mapping[str, Any], hflip: float = 0.0) -> None:
        self.size = tuple(preprocessing["input_size"][1:])
        self.interpolation = str_to_pil_interp(preprocessing["interpolation"])
        self.crop_mode, self.hflip = preprocessing.get("crop_mode", "center"), hflip
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f"crop_mode must be one of {', '.join(CROP_MODES)}, got {self.crop_mode!r}")

    def __call__(self, scene: Scene) -> SceneTensors:
        """Resize and flip a scene."""
        height, width = self.size
        box = crop_box(scene.image.size, (width, height)) if self.crop_mode == "center" else None
        segments = Image.fromarray(scene.segments.astype(np.int32, copy=False))
        image = np.asarray(scene.image.resize((width, height), self.interpolation, box))
        ids = np.asarray(segments.resize((width, height), Image.Resampling.NEAREST, box))
        if self.hflip and torch.rand(()).item() < self.hflip:
            image, ids = image[:, ::-1], ids[:, ::-1]
        return SceneTensors(
            torch.from_numpy(image.transpose(2, 0, 1).copy()),
            torch.from_numpy(ids.astype(np.int64)),
            torch.from_numpy(scene.classes),
            torch.from_numpy(scene.things),
        )


def crop_box(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest centred box of the wanted aspect: left, top, right, bottom.

    Args:
        size: Width and height of the image.
        wanted: Width and height that it will have.
    """
    width = min(size[0], size[1] * wanted[0] / wanted[1])
    height = min(size[1], size[0] * wanted[1] / wanted[0])
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, size[0] - left, size[1] - top
