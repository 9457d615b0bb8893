"""Local and object-centric attention for vision; importing it registers the models with timm."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from visionattn import models
from visionattn.layers.accelerate import accelerate
from visionattn.layers.prepared import frozen_weights

if TYPE_CHECKING:
    from visionattn.evaluation.source import load_model
    from visionattn.probing.export import load_probe

__all__ = ["__version__", "accelerate", "frozen_weights", "load_model", "load_probe", "models"]
__version__ = version("visionattn")

_LAZY = {"load_model": "visionattn.evaluation.source", "load_probe": "visionattn.probing.export"}
"""Functions whose modules are imported upon first use."""


def __getattr__(name: str) -> Any:
    """Import a function of `_LAZY`."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
