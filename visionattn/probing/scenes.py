"""Scenes for a frozen backbone: options that probes of patches share, and their preprocessing."""

from dataclasses import dataclass
from typing import Any

from visionattn.checks import check_range
from visionattn.data.errors import DataError
from visionattn.data.scenes.opening import SceneName
from visionattn.data.scenes.transforms import CropMode
from visionattn.data.transforms import MAX_SIZE
from visionattn.errors import UserError
from visionattn.evaluation.as_trained import DataOptions
from visionattn.probing.features.splits import prepare
from visionattn.probing.options import ProbingData
from visionattn.training import ModelSpec


@dataclass(frozen=True)
class ProbingScenes(DataOptions):
    """Scenes and their preprocessing, by default the backbone's own.

    More arguments: `visionattn.evaluation.DataOptions`.

    Args:
        name: synthetic, drawn on the fly; coco_panoptic; ade20k; folder, with masks of instance numbers; or
            semantic_folder, with masks of class numbers. By default folder if there is a root, else synthetic.
        batch_size: images per step of the backbone.
        train_split: name of the split for training, if it is not found by itself.
        val_split: name of the split for evaluation, if it is not found by itself.
        limit: number of scenes to use from each split, the first ones; by default all.
        length: number of synthetic scenes for training.
        val_length: number of synthetic scenes for evaluation.
        img_size: height and width in pixels.
        interpolation: bicubic, bilinear, nearest, …
        crop_mode: center resizes the shorter side and crops the longer one; squash resizes both.
    """

    name: SceneName | None = None
    batch_size: int = 16
    train_split: str | None = None
    val_split: str | None = None
    limit: int | None = None
    length: int = 1000
    val_length: int = 200
    img_size: int | None = None
    interpolation: str | None = None
    crop_mode: CropMode = "center"

    def __post_init__(self) -> None:
        check_range("data.img_size", self.img_size, 1, MAX_SIZE, error=UserError)

    def prepare(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the preprocessing of scenes for a model: its own, with the values that the options set.

        Raises:
            ValueError: the model takes sequences of pixels.
            DataError: it takes images that are not square, or not of 3 channels.
        """
        options = ProbingData(img_size=self.img_size, crop_pct=1.0, interpolation=self.interpolation)
        preprocessing = {**prepare(spec, options), "crop_mode": self.crop_mode}
        channels, height, width = preprocessing["input_size"]
        if height != width:
            raise DataError(f"{spec.model} takes {height}×{width} images, not square ones: choose --data.img_size N")
        if channels != 3:
            raise DataError(f"{spec.model} takes images of {channels} channels, and scenes have 3")
        return preprocessing
