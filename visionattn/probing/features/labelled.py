"""Scenes of a split as images with label maps, for the feature cache."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visionattn.data.loading import start_worker
from visionattn.data.normalisation import Normalisation
from visionattn.data.sampling import Draw
from visionattn.data.scenes import SceneData
from visionattn.data.scenes.loading import SceneSource
from visionattn.data.scenes.scene import Scene
from visionattn.data.scenes.transforms import SceneTransform
from visionattn.probing.features.contents import Part, fingerprint
from visionattn.probing.features.extraction import ImageBatch, collate_images
from visionattn.probing.features.splits import Split, SplitImages, load_batches


class LabelledImage(NamedTuple):
    """An image, bytes `[3, H, W]`, and the class of each pixel `[H, W]`, int16, -1 for none."""

    image: Tensor
    labels: Tensor


class LabelledTransform:
    """From scenes to images with label maps, resized and cropped together."""

    def __init__(self, preprocessing: Mapping[str, Any]) -> None:
        self.transform = SceneTransform(preprocessing)

    def __call__(self, scene: Scene) -> LabelledImage:
        """Transform a scene."""
        image, segments, classes, _ = self.transform(scene)
        return LabelledImage(image, classes[segments].to(torch.int16))


class LabelledImages(SplitImages):
    """Scenes of a split, as images with label maps of their size.

    The data set was opened by ``setup``. The folder `memory` remembers the hashes of unchanged files.
    """

    def __init__(
        self,
        module: SceneData,
        split: Split,
        memory: Path,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        scenes = module.scenes(split)
        super().__init__(SceneSource(scenes), split, module.preprocessing, module)
        self.label_size = module.item_shape[1:]
        self._worker_setup = module.worker_setup
        self._transform = LabelledTransform(self.preprocessing)
        parts: list[Part] = []
        for number in range(len(scenes)):
            parts += scenes.parts(number) or [scenes.name(number)]
        base = "" if module.root is None else str(Path(module.root))
        self.identity = {
            "dataset": module.name,
            "split": [split, module.splits[split]],
            "drawing": module.drawing if module.name == "synthetic" else None,
            "classes": list(scenes.class_names),
            "fingerprint": fingerprint(parts, memory, progress, base),
        }
        self.augmentation = {}

    def open(self, batches: Sequence[Sequence[int]], view: int = 0) -> Iterator[ImageBatch]:
        """Read images batch by batch; see `visionattn.probing.features.extraction.Images`."""
        assert view == 0, "scenes are not augmented"
        return load_batches(
            self.source,
            self._transform,
            partial(collate_labelled, normalisation=Normalisation.of(self.preprocessing)),
            [[Draw(number) for number in batch] for batch in batches],
            self._num_workers,
            self._on_error,
            worker_init_fn=partial(start_worker, self._worker_setup),
        )

    def photograph(self, number: int) -> Any:
        """Return an image as the backbone sees it, but in its own colours: bytes `[H, W, 3]`."""
        scene, _ = self.source.read(number)
        return self._transform(scene).image.permute(1, 2, 0).numpy()


def collate_labelled(items: Sequence[Any], normalisation: Normalisation) -> ImageBatch:
    """Make a batch of items whose `image` is a `LabelledImage`, or None if it cannot be read."""
    pairs = [item.image for item in items]
    images = [item._replace(image=pair and pair.image) for item, pair in zip(items, pairs, strict=True)]
    labels = [pair.labels for pair in pairs if pair is not None]
    batch = collate_images(images, normalisation)
    return batch._replace(labels=torch.stack(labels) if labels else torch.empty(0, dtype=torch.int16))
