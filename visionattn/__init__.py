"""Local and object-centric attention for vision; importing it registers the models with timm.

The models are imported together with timm, so that a command that needs neither starts at once.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from visionattn.lazy import import_after, lazy_exports

if TYPE_CHECKING:
    from visionattn import models
    from visionattn.analysis.looking import look
    from visionattn.cli.finetune import finetune
    from visionattn.cli.fitting import FitResult, fit
    from visionattn.embedding.embedder import embed
    from visionattn.embedding.files import Embeddings
    from visionattn.embedding.gallery import search
    from visionattn.embedding.index import Index
    from visionattn.evaluation.source import load_model
    from visionattn.layers.accelerate import accelerate
    from visionattn.layers.prepared import frozen_weights
    from visionattn.probing.classifier import load_probe

__all__ = [
    "Embeddings", "FitResult", "Index", "__version__", "accelerate", "embed", "finetune", "fit", "frozen_weights",
    "load_model", "load_probe", "look", "models", "search",
]  # fmt: skip
__version__ = version("visionattn")

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "analysis.looking": "look",
        "cli.finetune": "finetune",
        "cli.fitting": "FitResult fit",
        "embedding.embedder": "embed",
        "embedding.files": "Embeddings",
        "embedding.gallery": "search",
        "embedding.index": "Index",
        "evaluation.source": "load_model",
        "layers.accelerate": "accelerate",
        "layers.prepared": "frozen_weights",
        "models": "models",
        "probing.classifier": "load_probe",
    },
)

import_after("timm", f"{__name__}.models")
