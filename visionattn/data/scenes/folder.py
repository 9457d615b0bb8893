"""Folders of images with a folder of masks, whose values are numbers of instances."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from visionattn.data.errors import DataError
from visionattn.data.scenes.annotation import Keys, Label, channels, labelled_scene, open_mask, read_rgb
from visionattn.data.scenes.masked import MaskedImages
from visionattn.data.scenes.scene import Scene
from visionattn.data.sources import SPLITS

EXPECTED = (
    "expected are {root}/images/…/NAME.jpg (or .png) and {root}/instances/…/NAME.png, or both in a folder for each "
    "split, {root}/train and {root}/val"
)
BACKGROUND = 0
"""Value of masks outside objects."""


class SceneFolder:
    """Images under `images`, and masks of the same relative names under `instances`, PNG files of the same size.

    A mask of one channel (grey of 8 or 16 bits, or with a palette) holds the number of each position's instance; one in
    colour holds it as R + 256 G + 65536 B. 0 is the background, which is a segment of stuff; every other number is an
    object.

    Args:
        root: The folder that holds `images` and `instances`, or folders of these for each split.
        split: `train`, `validation`, or the name of a folder; without split folders all splits are the same.

    Raises:
        DataError: There are no images, or some have no mask.
    """

    class_names: Sequence[str] = ("background", "object")

    def __init__(self, root: Path, split: str) -> None:
        remedy = EXPECTED.format(root=root)
        if not root.is_dir():
            raise DataError(f"no such data folder: {root} (--data.root): {remedy}")
        places = [root / name for name in SPLITS.get(split, (split,))] + ([root] if split in SPLITS else [])
        place = next((place for place in places if (place / "images").is_dir()), None)
        if place is None:
            raise DataError(f"no images folder for {split} in {root}: {remedy}")
        self.files = MaskedImages(place / "images", place / "instances", remedy)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.files.image(index))

    def parts(self, index: int) -> list[Path]:
        """Return the files of image and mask."""
        return [self.files.image(index), self.files.mask(index)]

    def __getitem__(self, index: int) -> Scene:
        """Read a scene.

        Raises:
            OSError: The image cannot be read.
            ValueError: Its mask cannot be, or does not fit it.
        """
        return labelled_scene(read_rgb(self.files.image(index)), _numbers(self.files.mask(index)), _label)


def _label(number: int) -> Label:
    return Label(int(number != BACKGROUND), number != BACKGROUND)


def _numbers(path: Path) -> Keys:
    """Return the numbers of instances `[H, W]`."""
    mask = open_mask(path)
    if len(mask.getbands()) == 1:
        return np.asarray(mask).astype(np.int32)
    if mask.mode not in ("RGB", "RGBA"):
        raise ValueError(f"its mask {path} is of mode {mask.mode}: it must be grey, with a palette, or in colour")
    red, green, blue = channels(mask)
    return red + 256 * green + 65536 * blue
