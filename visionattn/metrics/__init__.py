"""Metrics of retrieval, re-identification and object discovery."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionattn.metrics.baselines import block_grid, random_segments
    from visionattn.metrics.object_discovery import (
        ARI,
        CorLoc,
        ForegroundARI,
        MeanBestOverlap,
        adjusted_rand_index,
        correct_localization,
        foreground_ari,
        mean_best_overlap,
    )
    from visionattn.metrics.reranking import rerank
    from visionattn.metrics.retrieval import evaluate_distances, evaluate_retrieval, evaluate_vehicleid

__all__ = [
    "ARI", "CorLoc", "ForegroundARI", "MeanBestOverlap", "adjusted_rand_index", "block_grid",
    "correct_localization", "evaluate_distances", "evaluate_retrieval", "evaluate_vehicleid", "foreground_ari",
    "mean_best_overlap", "random_segments", "rerank",
]  # fmt: skip

_LAZY = {
    "visionattn.metrics.baselines": ("block_grid", "random_segments"),
    "visionattn.metrics.reranking": ("rerank",),
    "visionattn.metrics.retrieval": ("evaluate_distances", "evaluate_retrieval", "evaluate_vehicleid"),
    "visionattn.metrics.object_discovery": (
        "ARI", "CorLoc", "ForegroundARI", "MeanBestOverlap", "adjusted_rand_index", "correct_localization",
        "foreground_ari", "mean_best_overlap"
    ),
}  # fmt: skip
"""Public names by module, each imported upon first use."""


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
