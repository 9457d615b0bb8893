"""Losses of re-identification, and the weighting of several losses by their uncertainty."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionattn.losses.center import CenterLoss
    from visionattn.losses.triplet import BatchHardTripletLoss
    from visionattn.losses.uncertainty import UncertaintyWeightedLoss

__all__ = ["BatchHardTripletLoss", "CenterLoss", "UncertaintyWeightedLoss"]

_LAZY = {
    "visionattn.losses.center": ("CenterLoss",),
    "visionattn.losses.triplet": ("BatchHardTripletLoss",),
    "visionattn.losses.uncertainty": ("UncertaintyWeightedLoss",),
}
"""Public names by module, each imported upon first use."""


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
