"""Lightning DataModules on timm's dataset readers and transforms."""

from visionattn.data.classification import ImageClassificationData
from visionattn.data.errors import DataError
from visionattn.data.loading import Batch, ImageLoader, UnreadableImageError
from visionattn.data.reid import ReidBatch, ReidData

__all__ = [
    "Batch",
    "DataError",
    "ImageClassificationData",
    "ImageLoader",
    "ReidBatch",
    "ReidData",
    "UnreadableImageError",
]
