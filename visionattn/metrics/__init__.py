"""Metrics of classification, retrieval, re-identification and object discovery."""

from typing import TYPE_CHECKING

from visionattn.lazy import lazy_exports

if TYPE_CHECKING:
    from visionattn.metrics.baselines import block_grid, random_segments
    from visionattn.metrics.classification import BalancedAccuracy, MacroF1, MeanAveragePrecision
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
    "ARI", "BalancedAccuracy", "CorLoc", "ForegroundARI", "MacroF1", "MeanAveragePrecision", "MeanBestOverlap",
    "adjusted_rand_index", "block_grid", "correct_localization", "evaluate_distances", "evaluate_retrieval",
    "evaluate_vehicleid", "foreground_ari", "mean_best_overlap", "random_segments", "rerank",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "baselines": "block_grid random_segments",
        "classification": "BalancedAccuracy MacroF1 MeanAveragePrecision",
        "object_discovery": "ARI CorLoc ForegroundARI MeanBestOverlap "
        "adjusted_rand_index correct_localization foreground_ari mean_best_overlap",
        "reranking": "rerank",
        "retrieval": "evaluate_distances evaluate_retrieval evaluate_vehicleid",
    },
)
