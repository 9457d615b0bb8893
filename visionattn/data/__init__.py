"""Data sets as Lightning DataModules, and the images, batches and errors that they give.

Names are imported upon first use, so that reading an image does not load Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionattn.data.classification import ImageClassificationData
    from visionattn.data.errors import DataError
    from visionattn.data.images import read_image
    from visionattn.data.loading import Batch, ImageLoader, UnreadableImageError
    from visionattn.data.module import ImageData
    from visionattn.data.reid.module import ReidBatch, ReidData
    from visionattn.data.scenes.loading import SceneBatch
    from visionattn.data.scenes.module import SceneData
    from visionattn.data.scenes.opening import open_scenes
    from visionattn.data.scenes.scene import Scene
    from visionattn.data.transforms import image_transform

__all__ = [
    "Batch", "DataError", "ImageClassificationData", "ImageData", "ImageLoader", "ReidBatch", "ReidData", "Scene",
    "SceneBatch", "SceneData", "UnreadableImageError", "image_transform", "open_scenes", "read_image",
]  # fmt: skip

_LAZY = {
    "visionattn.data.classification": ("ImageClassificationData",),
    "visionattn.data.errors": ("DataError",),
    "visionattn.data.images": ("read_image",),
    "visionattn.data.loading": ("Batch", "ImageLoader", "UnreadableImageError"),
    "visionattn.data.module": ("ImageData",),
    "visionattn.data.reid.module": ("ReidBatch", "ReidData"),
    "visionattn.data.scenes.loading": ("SceneBatch",),
    "visionattn.data.scenes.module": ("SceneData",),
    "visionattn.data.scenes.opening": ("open_scenes",),
    "visionattn.data.scenes.scene": ("Scene",),
    "visionattn.data.transforms": ("image_transform",),
}
"""Public names by module, each imported upon first use."""


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
