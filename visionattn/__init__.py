"""Local and object-centric attention for vision; importing it registers the models with timm."""

from importlib.metadata import version

from visionattn import models
from visionattn.layers.accelerate import accelerate

__all__ = ["__version__", "accelerate", "models"]
__version__ = version("visionattn")
