"""Segmentation by a linear head on the patches of a frozen backbone.

`SegmentationSession` extracts the features of a data set once, and trains and evaluates a head that classifies pixels.
"""

from typing import TYPE_CHECKING

from visionattn.lazy import lazy_exports

if TYPE_CHECKING:
    from visionattn.probing.segmentation.head import LinearSegmenter
    from visionattn.probing.segmentation.options import SegmentationTraining
    from visionattn.probing.segmentation.results import (
        ClassRow,
        SegmentationResult,
        SegmentationResults,
        SegmentationRow,
    )
    from visionattn.probing.segmentation.session import SegmentationSession, SegmentedImage

__all__ = [
    "ClassRow", "LinearSegmenter", "SegmentationResult", "SegmentationResults", "SegmentationRow",
    "SegmentationSession", "SegmentationTraining", "SegmentedImage",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "head": "LinearSegmenter",
        "options": "SegmentationTraining",
        "results": "ClassRow SegmentationResult SegmentationResults SegmentationRow",
        "session": "SegmentationSession SegmentedImage",
    },
)
