"""From scenes to batches of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from visionattn.data.loading import Item
from visionattn.data.normalisation import Normalisation, move_batch
from visionattn.data.scenes.scene import Scenes
from visionattn.data.scenes.transforms import SceneTensors


class SceneBatch(NamedTuple):
    """A batch, as every loader yields it.

    Attributes:
        image: images [B, 3, H, W], bytes or normalised floats; B is smaller than the batch size, or 0, if images were
            left out.
        segments: ids of the segments [B, H, W], int64; 0 for positions without one. The ids of an image count
            from 1 on, also if cropping and resizing removed some segments.
        classes: class of each segment by its id [B, S + 1], for the largest S in the batch; -1 for id 0 and after the
            last segment of an image.
        things: whether a segment is an object [B, S + 1].
        name: names of the B scenes.
        errors: one line for each broken image.
        normalisation: of images that are bytes.
    """

    image: Tensor
    segments: Tensor
    classes: Tensor
    things: Tensor
    name: list[str]
    errors: list[str]
    normalisation: Normalisation | None = None

    def to(self, device: torch.device | str) -> "SceneBatch":
        """Return the batch on a device, with normalised images; Lightning calls this."""
        return move_batch(self, device)


class SceneSource:
    """Scenes in the place of images, which :class:`~visionattn.data.loading.ImageDataset` reads and transforms."""

    class_to_idx: Mapping[str, int] | None = None

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def read(self, index: int) -> tuple[Any, int]:
        """Return a scene, and no class."""
        return self.scenes[index], -1

    def name_of(self, index: int) -> str:
        """Return the name of a scene in its data set."""
        return self.scenes.name(index)

    def targets(self) -> Sequence[int]:
        """Return no classes: segments have classes, scenes do not."""
        return [-1] * len(self)


class SceneCollate:
    """Collation of items to a :class:`SceneBatch` of the scenes that could be read.

    Args:
        input_size: (C, H, W), for empty batches.
        normalisation: of images that are bytes.
    """

    def __init__(self, input_size: tuple[int, int, int], normalisation: Normalisation | None = None) -> None:
        self.normalisation = normalisation
        height, width = input_size[1:]
        self.blank = SceneTensors(
            torch.empty(input_size),
            torch.empty(height, width, dtype=torch.long),
            torch.tensor([-1]),
            torch.tensor([False]),
        )

    def __call__(self, items: Sequence[Item]) -> SceneBatch:
        """Stack the scenes that could be read."""
        good = [item for item in items if item.image is not None]
        scenes: list[Any] = [item.image for item in good]
        images, segments, classes, things = (list(parts) for parts in zip(*(scenes or [self.blank]), strict=True))
        count = len(good)
        return SceneBatch(
            torch.stack(images)[:count],
            torch.stack(segments)[:count],
            pad_sequence(classes, batch_first=True, padding_value=-1)[:count],
            pad_sequence(things, batch_first=True)[:count],
            [item.name for item in good],
            [error for item in items for error in item.errors],
            self.normalisation,
        )
