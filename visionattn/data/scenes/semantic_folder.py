"""Folders of images with a folder of masks, whose values are numbers of classes."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.errors import DataError
from visionattn.data.scenes.annotation import Keys, Label, labelled_scene, open_mask, read_rgb
from visionattn.data.scenes.masked import MaskedImages
from visionattn.data.scenes.scene import Scene
from visionattn.data.sources import SPLITS

EXPECTED = (
    "expected are {root}/images/…/NAME.jpg (or .png) and {root}/labels/…/NAME.png (or annotations in place of labels), "
    "with folders train and val below these or above"
)
MASKS = ("labels", "annotations")
NAME_FILES = ("class_names.txt", "class_names.json")
IGNORED = {8: 255, 16: 65535}
"""Value of unlabelled pixels in masks of 8 and of 16 bits."""


class SemanticFolder:
    """Images under `images`, and masks of the same relative names under `labels` or `annotations`, PNG files.

    A mask has one channel (grey of 8 or 16 bits, or with a palette) of the image's size, whose values are class
    numbers; 255 means unlabelled, in masks of 16 bits 65535. A segment is the region of one class, and stuff.

    `class_names.txt` in the root has a name per line, from class 0 on. `class_names.json` is a list of names, or maps
    values to names; values whose name is null are unlabelled. Without such a file, classes are 0 to 254.

    Args:
        root: The folder that holds `images` and the masks, in each of these or around them a folder for each split.
        split: `train`, `validation`, or the name of a folder; without split folders all splits are the same.

    Raises:
        DataError: There are no images, some have no mask, or the names cannot be read.
    """

    def __init__(self, root: Path, split: str) -> None:
        remedy = EXPECTED.format(root=root)
        if not root.is_dir():
            raise DataError(f"no such data folder: {root} (--data.root): {remedy}")
        place = next(_places(root, split), None)
        if place is None:
            raise DataError(f"no images with labels for {split} in {root}: {remedy}")
        self.files = MaskedImages(*place, remedy)
        self.names_file = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
        names = _read_names(self.names_file) if self.names_file else {value: str(value) for value in range(IGNORED[8])}
        kept = [(value, name) for value, name in sorted(names.items()) if name is not None]
        self.class_names: Sequence[str] = [name for _, name in kept]
        self.targets = dict.fromkeys(names, -1) | {value: target for target, (value, _) in enumerate(kept)}

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.files.image(index))

    def parts(self, index: int) -> list[Path]:
        """Return the files of image and mask, and the first time that of the names."""
        first = [self.names_file] if self.names_file and not index else []
        return [self.files.image(index), self.files.mask(index), *first]

    def __getitem__(self, index: int) -> Scene:
        """Read a scene.

        Raises:
            OSError: The image cannot be read.
            ValueError: Its mask cannot be, does not fit it, or has a value that is no class.
        """
        path = self.files.mask(index)
        values, ignored = _values(path)

        def label(value: int) -> Label | None:
            if value == ignored:
                return None
            if value not in self.targets:
                raise ValueError(
                    f"its mask {path} has class {value}, where {len(self.targets)} are known: correct it, or name "
                    f"every class in {self.names_file or NAME_FILES[0]}"
                )
            target = self.targets[value]
            return None if target < 0 else Label(target, False)

        return labelled_scene(read_rgb(self.files.image(index)), values, label)


def _places(root: Path, split: str) -> Iterator[tuple[Path, Path]]:
    """Yield the folders of images and masks of a split that exist; those of all splits only if there are no others."""
    known = {name for names in SPLITS.values() for name in names}
    names = SPLITS.get(split, (split,))
    pairs = [(root / name / "images", root / name / masks) for name in names for masks in MASKS]
    pairs += [(root / "images" / name, root / masks / name) for name in names for masks in MASKS]
    if split in SPLITS and not any((root / "images" / name).is_dir() for name in known):
        pairs += [(root / "images", root / masks) for masks in MASKS]
    return (pair for pair in pairs if all(folder.is_dir() for folder in pair))


def _read_names(path: Path) -> dict[int, str | None]:
    """Return the name of each value of the masks; None for unlabelled.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content: Any = json.loads(text) if path.suffix == ".json" else text.strip().splitlines()
        named = content.items() if isinstance(content, dict) else enumerate(content)
        names = {int(value): name if name is None else str(name).strip() for value, name in named}
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): expected is a name per class") from error
    if not any(names.values()) or "" in names.values():
        raise DataError(f"{path} has no name or an empty one: expected is a name per class")
    return names


def _values(path: Path) -> tuple[Keys, int]:
    """Return the values of a mask `[H, W]`, and the one of unlabelled pixels."""
    mask = open_mask(path)
    if len(mask.getbands()) > 1:
        raise ValueError(f"its mask {path} is of mode {mask.mode}: class numbers are grey or have a palette")
    values = np.asarray(mask)
    return values.astype(np.int32), IGNORED[8 if values.dtype.itemsize == 1 else 16]
