"""Evaluation of trained models: load a model, evaluate it on a data set, get a result with figures.

`ModelSource` and `visionattn.load_model` return a `LoadedModel`. `evaluate_classifier`, `evaluate_labels`,
`evaluate_reid`, `evaluate_slots` and `measure_throughput` return dataclasses, whose ``to_dict()`` is what ``eval.py
--output`` writes. `predict` yields a `Prediction` for each image.
"""

from typing import TYPE_CHECKING

from visionattn.lazy import lazy_exports

if TYPE_CHECKING:
    from visionattn.evaluation.as_trained import (
        DataOptions,
        IdentityOptions,
        ImageOptions,
        PreparedImages,
        SceneOptions,
        open_identities,
        open_images,
        open_scenes,
    )
    from visionattn.evaluation.classification import ClassificationResult, evaluate_classifier
    from visionattn.evaluation.discovery import DiscoveryResult, evaluate_slots
    from visionattn.evaluation.drawing import save_ranked_lists, save_rollouts, save_slot_sheet
    from visionattn.evaluation.loop import Result
    from visionattn.evaluation.multi_label import MultiLabelResult, evaluate_labels
    from visionattn.evaluation.prediction import Prediction, predict
    from visionattn.evaluation.pruned import Speed, compare_speed, prune, save_pruned
    from visionattn.evaluation.retrieval import RetrievalResult, evaluate_reid
    from visionattn.evaluation.source import LoadedModel, ModelSource, Origin, draw_weights, load_model
    from visionattn.evaluation.thresholds import best_thresholds, read_thresholds
    from visionattn.evaluation.throughput import ThroughputRow, measure_throughput
    from visionattn.evaluation.timing import Conditions, count_macs

__all__ = [
    "ClassificationResult", "Conditions", "DataOptions", "DiscoveryResult", "IdentityOptions", "ImageOptions",
    "LoadedModel", "ModelSource", "MultiLabelResult", "Origin", "Prediction", "PreparedImages", "Result",
    "RetrievalResult", "SceneOptions", "Speed", "ThroughputRow", "best_thresholds", "compare_speed", "count_macs",
    "draw_weights", "evaluate_classifier", "evaluate_labels", "evaluate_reid", "evaluate_slots", "load_model",
    "measure_throughput", "open_identities", "open_images", "open_scenes", "predict", "prune", "read_thresholds",
    "save_pruned", "save_ranked_lists", "save_rollouts", "save_slot_sheet",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "pruned": "Speed compare_speed prune save_pruned",
        "as_trained": "DataOptions IdentityOptions ImageOptions PreparedImages SceneOptions open_identities "
        "open_images open_scenes",
        "classification": "ClassificationResult evaluate_classifier",
        "discovery": "DiscoveryResult evaluate_slots",
        "drawing": "save_ranked_lists save_rollouts save_slot_sheet",
        "loop": "Result",
        "multi_label": "MultiLabelResult evaluate_labels",
        "prediction": "Prediction predict",
        "retrieval": "RetrievalResult evaluate_reid",
        "source": "LoadedModel ModelSource Origin draw_weights load_model",
        "thresholds": "best_thresholds read_thresholds",
        "throughput": "ThroughputRow measure_throughput",
        "timing": "Conditions count_macs",
    },
)
