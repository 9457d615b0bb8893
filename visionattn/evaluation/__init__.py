"""Evaluation of trained models: load a model, evaluate it on a data set, get a result with figures.

`ModelSource` and `visionattn.load_model` return a `LoadedModel`. `evaluate_classifier`, `evaluate_reid`,
`evaluate_slots` and `measure_throughput` return dataclasses, whose ``to_dict()`` is what ``eval.py --output`` writes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionattn.evaluation.as_trained import (
        IdentityOptions,
        ImageOptions,
        SceneOptions,
        open_identities,
        open_images,
        open_scenes,
    )
    from visionattn.evaluation.classification import ClassificationResult, evaluate_classifier
    from visionattn.evaluation.discovery import DiscoveryResult, evaluate_slots
    from visionattn.evaluation.drawing import save_ranked_lists, save_rollouts, save_slot_sheet
    from visionattn.evaluation.retrieval import RetrievalResult, evaluate_reid
    from visionattn.evaluation.source import LoadedModel, ModelSource, Origin, load_model
    from visionattn.evaluation.throughput import ThroughputRow, measure_throughput
    from visionattn.evaluation.timing import Conditions, count_macs

__all__ = [
    "ClassificationResult", "Conditions", "DiscoveryResult", "IdentityOptions", "ImageOptions", "LoadedModel",
    "ModelSource", "Origin", "RetrievalResult", "SceneOptions", "ThroughputRow", "count_macs", "evaluate_classifier",
    "evaluate_reid", "evaluate_slots", "load_model", "measure_throughput", "open_identities", "open_images",
    "open_scenes", "save_ranked_lists", "save_rollouts", "save_slot_sheet",
]  # fmt: skip

_MODULES = ("source", "as_trained", "timing", "throughput", "classification", "retrieval", "discovery", "drawing")
"""Modules in the order in which names are looked for; they load Lightning and torchmetrics."""


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` upon first use."""
    if name in __all__:
        for module in _MODULES:
            if hasattr(found := import_module(f"{__name__}.{module}"), name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
