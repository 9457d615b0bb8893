"""Scenes: one DataModule for synthetic scenes, COCO panoptic, ADE20K and folders of images with masks."""

from pathlib import Path
from typing import Any

from visionattn.checks import check_range
from visionattn.data.drawing import single_threaded
from visionattn.data.errors import DataError
from visionattn.data.loading import ImageDataset, ImageLoader, OnError
from visionattn.data.module import ImageData
from visionattn.data.options import check_augmentation, make_preprocessing
from visionattn.data.scenes.loading import SceneCollate, SceneSource
from visionattn.data.scenes.opening import SceneName, open_scenes
from visionattn.data.scenes.scene import Scenes
from visionattn.data.scenes.synthetic import LENGTHS
from visionattn.data.scenes.transforms import CROP_MODES, CropMode, SceneTransform
from visionattn.data.transforms import MAX_SIZE

SYNTHETIC_SIZE, PHOTOGRAPH_SIZE = 64, 224


class SceneData(ImageData):
    """Scenes for training and validation. Nothing is downloaded; test is the same as validation.

    Args:
        name: ``synthetic`` (drawn on demand; the default without a root), ``coco_panoptic``,
            ``ade20k``, ``folder`` (the default with a root), a folder with masks of instance numbers, or
            ``semantic_folder``, one with masks of class numbers.
        root: folder of the data set.
        train_split: name of the training split, by default the data set's usual one.
        val_split: name of the validation split, likewise.
        limit: number of scenes of each split, the first ones; by default all.
        image_size: height and width in pixels, by default 64 for synthetic scenes and 224 for others.
        length: number of synthetic scenes for training.
        val_length: number of synthetic scenes for validation.
        max_objects: largest number of objects in a synthetic scene; the smallest is 2.
        textured: draw patterns on some synthetic objects and backgrounds.
        batch_size: scenes per step and per device.
        eval_batch_size: scenes per step and per device in evaluation, by default ``batch_size``.
        num_workers: loader processes per device, by default the number of cores, at most 8.
        mean: mean of each channel, by default ImageNet's.
        std: standard deviation of each channel, by default ImageNet's.
        interpolation: interpolation of images: ``bicubic`` (the default), ``bilinear``, ``nearest``, …; segments always
            use ``nearest``.
        crop_mode: ``center``, the default, keeps the aspect and crops the longer side; ``squash`` does not crop.
        hflip: probability of a horizontal flip in training.
        on_error: for a scene that cannot be read: ``raise`` stops with its name; ``skip`` counts it, and replaces it
            by another scene in training.
        seed: seed of shuffling and augmentation, by default that of ``seed_everything``; not of synthetic scenes.

    Raises:
        DataError: an option does not fit; in ``setup``, if data are missing or not as expected.
    """

    def __init__(
        self,
        name: SceneName | None = None,
        root: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        limit: int | None = None,
        image_size: int | None = None,
        length: int = LENGTHS[0],
        val_length: int = LENGTHS[1],
        max_objects: int = 6,
        textured: bool = True,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        interpolation: str | None = None,
        crop_mode: CropMode | None = None,
        hflip: float = 0.5,
        on_error: OnError = "raise",
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, on_error, seed)
        self.name: str = name or ("folder" if root else "synthetic")
        self.worker_setup = single_threaded if self.name == "synthetic" else None
        self.root, self.limit, self.hflip = root and str(Path(root).expanduser()), limit, hflip
        size = (SYNTHETIC_SIZE if self.name == "synthetic" else PHOTOGRAPH_SIZE) if image_size is None else image_size
        check_range("data.image_size", size, 1, MAX_SIZE, error=DataError)
        check_augmentation({"hflip": hflip}, size)
        self.splits: dict[str, str | None] = {"train": train_split, "validation": val_split}
        self.lengths = {"train": length, "validation": val_length}
        self.drawing: dict[str, Any] = {"max_objects": max_objects, "textured": textured}
        self.preprocessing = make_preprocessing(
            (3, size, size), mean, std, interpolation, crop_mode=crop_mode, crop_modes=CROP_MODES
        )
        self._scenes: dict[str, Scenes] = {}

    @property
    def class_names(self) -> list[str]:
        """Class names; known after ``setup``. A checkpoint may have others: slots do not use classes."""
        return list(next(iter(self._scenes.values())).class_names)

    def scenes(self, split: str) -> Scenes:
        """Return the scenes of a split that was opened by `setup`, ``train`` or ``validation``."""
        return self._scenes[split]

    def setup(self, stage: str) -> None:
        """Open the splits that ``stage`` (fit, validate or test) needs."""
        if stage == "predict":
            raise DataError("scenes have segments to compare with, there is nothing to predict: use validate")
        for split in ("train", "validation") if stage == "fit" else ("validation",):
            if split not in self._scenes:
                self._scenes[split] = self._open(split)

    def _open(self, split: str) -> Scenes:
        drawing = {"image_size": self.item_shape[-1], "length": self.lengths[split], **self.drawing}
        return open_scenes(self.name, self.root, self.splits[split] or split, limit=self.limit, **drawing)

    def loader(self, split: str) -> ImageLoader:
        """Make the loader of a split; that of ``test`` is the same as that of ``validation``."""
        training = split == "train"
        scenes = self._scenes["train" if training else "validation"]
        transform: Any = SceneTransform(self.preprocessing, self.hflip if training else 0.0)
        return ImageLoader(
            ImageDataset(SceneSource(scenes), transform, replace_broken=training and self.on_error == "skip"),
            self.on_error,
            **self.batches(len(scenes), training),
            **self.worker_options,
            collate_fn=SceneCollate(self.item_shape, self.normalisation),
        )

    def describe(self) -> str:
        """Return the name of the data set and the sizes of its splits, in words."""
        sizes = ", ".join(f"{len(scenes):,} {split}" for split, scenes in self._scenes.items())
        where = self.name if self.root is None else f"{self.name} in {self.root}"
        return f"{where}: {sizes} scenes of {self.num_classes:,} classes"
