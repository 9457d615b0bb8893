"""Losses of classification and re-identification, and the weighting of several losses by their uncertainty."""

from typing import TYPE_CHECKING

from visionattn.lazy import lazy_exports

if TYPE_CHECKING:
    from visionattn.losses.center import CenterLoss
    from visionattn.losses.classification import FocalLoss
    from visionattn.losses.triplet import BatchHardTripletLoss
    from visionattn.losses.uncertainty import UncertaintyWeightedLoss

__all__ = ["BatchHardTripletLoss", "CenterLoss", "FocalLoss", "UncertaintyWeightedLoss"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "center": "CenterLoss",
        "classification": "FocalLoss",
        "triplet": "BatchHardTripletLoss",
        "uncertainty": "UncertaintyWeightedLoss",
    },
)
