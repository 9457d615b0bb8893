"""Opening of a split of any data set of scenes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

from visionattn.data.errors import DataError
from visionattn.data.scenes.ade20k import Ade20k
from visionattn.data.scenes.coco import CocoPanoptic
from visionattn.data.scenes.folder import SceneFolder
from visionattn.data.scenes.scene import Scene, Scenes
from visionattn.data.scenes.semantic_folder import SemanticFolder
from visionattn.data.scenes.synthetic import Synthetic

SceneName = Literal["synthetic", "coco_panoptic", "ade20k", "folder", "semantic_folder"]
READERS: Mapping[str, Callable[[Path, str], Scenes]] = {
    "coco_panoptic": CocoPanoptic,
    "ade20k": Ade20k,
    "folder": SceneFolder,
    "semantic_folder": SemanticFolder,
}


def open_scenes(
    name: str,
    root: str | None = None,
    split: str = "validation",
    *,
    limit: int | None = None,
    image_size: int = 64,
    length: int | None = None,
    max_objects: int = 6,
    textured: bool = True,
) -> Scenes:
    """Open one split of a data set.

    Args:
        name: ``synthetic``, ``coco_panoptic``, ``ade20k``, ``folder`` or ``semantic_folder``.
        root: folder of the data set; None for synthetic scenes.
        split: ``train`` or ``validation``, which are found under their usual names, or the data set's own name.
        limit: number of scenes, the first ones; by default all.
        image_size: edge in pixels of synthetic scenes, for which the following options also are.
        length: number of scenes.
        max_objects: largest number of objects.
        textured: draw patterns on some objects and backgrounds.

    Raises:
        DataError: see the message.
    """
    if name not in get_args(SceneName):
        raise DataError(f"unknown data set {name!r} of scenes: one of {', '.join(get_args(SceneName))}")
    if limit is not None and limit < 1:
        raise DataError(f"--data.limit must be at least 1, got {limit}; leave it out for all")
    if name == "synthetic":
        if root:
            raise DataError(f"--data.name synthetic takes no --data.root ({root}): for images in a folder use folder")
        scenes: Scenes = Synthetic(split, length, image_size, max_objects, textured)
    elif not root:
        raise DataError(f"--data.name {name} needs --data.root FOLDER, or choose --data.name synthetic")
    else:
        scenes = READERS[name](Path(root), split)
    return scenes if limit is None or limit >= len(scenes) else _First(scenes, limit)


class _First:
    """The first scenes of a split."""

    def __init__(self, scenes: Scenes, count: int) -> None:
        self.scenes, self.count, self.class_names = scenes, count, scenes.class_names

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return self.scenes.name(index)

    def parts(self, index: int) -> list[Path]:
        return self.scenes.parts(index)

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.count:
            raise IndexError(f"there are {self.count:,} scenes, got number {index}")
        return self.scenes[index]
