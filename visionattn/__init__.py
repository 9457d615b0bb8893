"""Local and object-centric attention for vision; importing it registers the models with timm."""

from importlib.metadata import version

from visionattn import models

__all__ = ["__version__", "models"]
__version__ = version("visionattn")
