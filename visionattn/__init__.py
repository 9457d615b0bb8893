"""Local and object-centric attention for vision; importing it registers the models with timm."""

from importlib.metadata import version
from typing import TYPE_CHECKING

from visionattn import models
from visionattn.layers.accelerate import accelerate
from visionattn.layers.prepared import frozen_weights
from visionattn.lazy import lazy_exports

if TYPE_CHECKING:
    from visionattn.cli.finetune import finetune
    from visionattn.cli.fitting import FitResult, fit
    from visionattn.evaluation.source import load_model
    from visionattn.probing.export import load_probe

__all__ = [
    "FitResult", "__version__", "accelerate", "finetune", "fit", "frozen_weights", "load_model", "load_probe", "models",
]  # fmt: skip
__version__ = version("visionattn")

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "cli.finetune": "finetune",
        "cli.fitting": "FitResult fit",
        "evaluation.source": "load_model",
        "probing.export": "load_probe",
    },
)
