"""COCO panoptic: an image, a PNG whose colours are numbers of segments, and a JSON that says what these show."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.errors import DataError
from visionattn.data.scenes.annotation import Label, channels, labelled_scene, open_mask, read_rgb
from visionattn.data.scenes.scene import Scene
from visionattn.data.sources import SPLITS

EXPECTED = (
    "COCO panoptic is expected as {root}/{split}2017/*.jpg, {root}/annotations/panoptic_{split}2017.json and "
    "{root}/annotations/panoptic_{split}2017/*.png, the contents of its archives. Nothing is downloaded: obtain them "
    "from cocodataset.org"
)
VOID = 0
"""The number of unlabelled positions."""


class CocoPanoptic:
    """Kirillov et al., "Panoptic Segmentation" (arXiv 1801.00868), on COCO 2017: 80 kinds of things, 53 of stuff.

    Crowds, whose members are not separated, and positions without annotation are unlabelled.

    Args:
        root: The folder that holds `annotations`.
        split: `train`, `validation`, or the name of another split without its `2017`.

    Raises:
        DataError: Annotations are missing or not as expected.
    """

    def __init__(self, root: Path, split: str) -> None:
        if not root.is_dir():
            raise DataError(f"no such data folder: {root} (--data.root). {EXPECTED.format(root=root, split='val')}")
        names = SPLITS.get(split, (split.removesuffix("2017"),))
        tables = [root / "annotations" / f"panoptic_{name}2017.json" for name in names]
        table = next((path for path in tables if path.is_file()), None)
        if table is None:
            raise DataError(f"no {tables[0]}. {EXPECTED.format(root=root, split=names[0])}")
        self.table, self.masks = table, table.with_suffix("")
        self.images = root / self.masks.name.removeprefix("panoptic_")
        try:
            self._index(json.loads(table.read_bytes()))
        except DataError as error:
            raise DataError(f"{table}: {error}; correct it, or download the file again") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{table} is damaged or holds no panoptic annotations ({error!r}): download it again"
            ) from error
        if not self.files:
            raise DataError(f"{table} lists no images: download it again")

    def _index(self, table: dict[str, Any]) -> None:
        """Keep the needed part of the table in arrays; Python objects of a training split take gigabytes."""
        categories = sorted(table["categories"], key=lambda category: category["id"])
        self.class_names: Sequence[str] = [
            _value(category, "name", f"category {category['id']}") for category in categories
        ]
        self.things = [bool(_value(category, "isthing", f"category {category['id']}")) for category in categories]
        targets = {category["id"]: target for target, category in enumerate(categories)}
        images = {image["id"]: image["file_name"] for image in table["images"]}
        entries = sorted(table["annotations"], key=lambda entry: entry["image_id"])
        self.files, self.segments = [], []
        for entry in entries:
            if entry["image_id"] not in images:
                raise DataError(f"an annotation is of image {entry['image_id']}, which is not among the images")
            name = images[entry["image_id"]]
            segments = [
                _segment(segment, targets, name)
                for segment in _value(entry, "segments_info", f"the annotation of {name}")
            ]
            self.files.append((name, _value(entry, "file_name", f"the annotation of {name}")))
            self.segments.append(np.array(segments, np.int32).reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.images / self.files[index][0])

    def parts(self, index: int) -> list[Path]:
        """Return the files of image and mask, and the first time the table of all."""
        name, mask = self.files[index]
        return [self.images / name, self.masks / mask, *([] if index else [self.table])]

    def __getitem__(self, index: int) -> Scene:
        """Read a scene.

        Raises:
            OSError: The image cannot be read.
            ValueError: Its mask cannot be, or does not fit it.
        """
        name, mask = self.files[index]
        targets: dict[int, int] = dict(zip(*self.segments[index].T.tolist(), strict=True))

        def label(number: int) -> Label | None:
            if number == VOID:
                return None
            if number not in targets:
                raise ValueError(f"{self.masks.name}.json does not say what segment {number} of its mask {mask} is")
            target = targets[number]
            return None if target < 0 else Label(target, self.things[target])

        image = read_rgb(self.images / name)
        red, green, blue = channels(open_mask(self.masks / mask))
        return labelled_scene(image, red + 256 * green + 65536 * blue, label)


def _value(record: Mapping[str, Any], key: str, name: str) -> Any:
    """Return the value of a key.

    Raises:
        DataError: the record ``name`` lacks the key.
    """
    if key not in record:
        raise DataError(f"{name} has no {key}")
    return record[key]


def _segment(segment: Mapping[str, Any], targets: Mapping[int, int], image: str) -> tuple[int, int]:
    """Return the number and the class of a segment, -1 for a crowd.

    Raises:
        DataError: a key is missing, or the category is unknown.
    """
    try:
        return segment["id"], -1 if segment["iscrowd"] else targets[segment["category_id"]]
    except KeyError as error:
        name = f"segment {segment.get('id', '?')} of {image}"
        for key in ("id", "iscrowd", "category_id"):
            _value(segment, key, name)
        raise DataError(
            f"{name} has category_id {segment['category_id']}, which is not among the categories"
        ) from error
