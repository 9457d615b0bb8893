"""Data sets as Lightning DataModules, and the images, batches and errors that they give.

Names are imported upon first use, so that reading an image does not load Lightning.
"""

from typing import TYPE_CHECKING

from visionattn.lazy import lazy_exports

if TYPE_CHECKING:
    from visionattn.data.classification import ImageClassificationData
    from visionattn.data.errors import DataError
    from visionattn.data.images import read_image
    from visionattn.data.loading import Batch, ImageLoader, UnreadableImageError
    from visionattn.data.module import ImageData
    from visionattn.data.recall.module import RecallBatch, RecallData
    from visionattn.data.reid.module import ReidBatch, ReidData
    from visionattn.data.scenes.loading import SceneBatch
    from visionattn.data.scenes.module import SceneData
    from visionattn.data.scenes.opening import open_scenes
    from visionattn.data.scenes.scene import Scene
    from visionattn.data.transforms import image_transform

__all__ = [
    "Batch", "DataError", "ImageClassificationData", "ImageData", "ImageLoader", "RecallBatch", "RecallData",
    "ReidBatch", "ReidData", "Scene", "SceneBatch", "SceneData", "UnreadableImageError", "image_transform",
    "open_scenes", "read_image",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "classification": "ImageClassificationData",
        "errors": "DataError",
        "images": "read_image",
        "loading": "Batch ImageLoader UnreadableImageError",
        "module": "ImageData",
        "recall.module": "RecallBatch RecallData",
        "reid.module": "ReidBatch ReidData",
        "scenes.loading": "SceneBatch",
        "scenes.module": "SceneData",
        "scenes.opening": "open_scenes",
        "scenes.scene": "Scene",
        "transforms": "image_transform",
    },
)
