"""Lightning DataModules on timm's dataset readers and transforms."""

from visionattn.data.classification import ImageClassificationData
from visionattn.data.errors import DataError
from visionattn.data.loading import Batch, ImageLoader, UnreadableImageError

__all__ = ["Batch", "DataError", "ImageClassificationData", "ImageLoader", "UnreadableImageError"]
