"""Old names of what is in `visionattn.training` now."""

from visionattn.training import (
    AVERAGE_BESIDE,
    METADATA_KEY,
    Weights,
    check_model_name,
    describe_weights,
    label_names,
    load_beside,
    load_plain,
    require_own_model,
    stored_spec,
    weights_origin,
)
from visionattn.training import ModelSpec as ClassifierSpec
from visionattn.training import create_model as create_classifier
from visionattn.training import describe_model as describe_classifier
from visionattn.training import load_checkpoint as load_classifier

__all__ = [
    "AVERAGE_BESIDE",
    "METADATA_KEY",
    "ClassifierSpec",
    "Weights",
    "check_model_name",
    "create_classifier",
    "describe_classifier",
    "describe_weights",
    "label_names",
    "load_beside",
    "load_classifier",
    "load_plain",
    "require_own_model",
    "stored_spec",
    "weights_origin",
]
