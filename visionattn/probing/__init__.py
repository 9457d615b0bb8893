"""Probing of frozen backbones: heads that are trained on their features.

A `ProbingSession` extracts the features of a data set once, and trains and evaluates heads on them. Its results are the
rows of ``eval.py probe --output``. `load_probe` makes a classifier of an exported head. For segmentation there is
`visionattn.probing.segmentation`.
"""

from typing import TYPE_CHECKING

from visionattn.lazy import lazy_exports

if TYPE_CHECKING:
    from visionattn.probing.classifier import ProbeClassifier, load_probe
    from visionattn.probing.export import export_probe
    from visionattn.probing.features import TensorFeatures, extract_features
    from visionattn.probing.frozen import FrozenBackbone, TokenLayout
    from visionattn.probing.heads import create_head, list_heads
    from visionattn.probing.linear import FittedHead, fit_head
    from visionattn.probing.options import FeatureOptions, HeadTraining, LayerOptions, ProbingData
    from visionattn.probing.requests import HeadRequest
    from visionattn.probing.results import ProbingResult
    from visionattn.probing.scenes import ProbingScenes
    from visionattn.probing.session import ProbingSession

__all__ = [
    "FeatureOptions", "FittedHead", "FrozenBackbone", "HeadRequest", "HeadTraining", "LayerOptions", "ProbeClassifier",
    "ProbingData", "ProbingResult", "ProbingScenes", "ProbingSession", "TensorFeatures", "TokenLayout", "create_head",
    "export_probe", "extract_features", "fit_head", "list_heads", "load_probe",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "classifier": "ProbeClassifier load_probe",
        "export": "export_probe",
        "features": "TensorFeatures extract_features",
        "frozen": "FrozenBackbone TokenLayout",
        "heads": "create_head list_heads",
        "linear": "FittedHead fit_head",
        "options": "FeatureOptions HeadTraining LayerOptions ProbingData",
        "requests": "HeadRequest",
        "results": "ProbingResult",
        "scenes": "ProbingScenes",
        "session": "ProbingSession",
    },
)
