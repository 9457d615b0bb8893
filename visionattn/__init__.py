"""Local and object-centric attention for vision; importing it registers the models with timm."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from visionattn import models
from visionattn.layers.accelerate import accelerate
from visionattn.layers.prepared import frozen_weights

if TYPE_CHECKING:
    from visionattn.probing.export import load_probe

__all__ = ["__version__", "accelerate", "frozen_weights", "load_probe", "models"]
__version__ = version("visionattn")


def __getattr__(name: str) -> Any:
    """Imports what few need where it is asked for."""
    if name == "load_probe":
        from visionattn.probing.export import load_probe

        return load_probe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
