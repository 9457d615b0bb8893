"""Lightning DataModules on timm's dataset readers and transforms."""

from visionattn.data.classification import ImageClassificationData
from visionattn.data.loading import Batch, ImageLoader, UnreadableImageError
from visionattn.data.sources import DataError

__all__ = ["Batch", "DataError", "ImageClassificationData", "ImageLoader", "UnreadableImageError"]
