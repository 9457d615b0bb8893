"""Losses of re-identification, and the weighting of several losses by their uncertainty."""

from visionattn.losses.center import CenterLoss
from visionattn.losses.triplet import BatchHardTripletLoss
from visionattn.losses.uncertainty import UncertaintyWeightedLoss

__all__ = ["BatchHardTripletLoss", "CenterLoss", "UncertaintyWeightedLoss"]
