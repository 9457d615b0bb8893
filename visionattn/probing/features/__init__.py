"""Features of frozen backbones: extraction, the cache on disk, and the sources that heads learn from."""

from visionattn.probing.features.extraction import FeatureCache, extract_features
from visionattn.probing.features.sources import CachedFeatures, FeatureSource, OnlineFeatures, TensorFeatures

__all__ = ["CachedFeatures", "FeatureCache", "FeatureSource", "OnlineFeatures", "TensorFeatures", "extract_features"]
