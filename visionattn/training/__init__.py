"""Parts of a training: models and weights to start from, optimizers, schedules, checkpoints, run folders."""

from visionattn.training.checkpoints.files import read_checkpoint
from visionattn.training.checkpoints.loading import (
    AVERAGE_BESIDE,
    Weights,
    describe_model,
    describe_weights,
    load_beside,
    load_checkpoint,
    load_plain,
    weights_origin,
)
from visionattn.training.checkpoints.spec import METADATA_KEY, ModelSpec, require_own_model, stored_spec
from visionattn.training.models import check_model_name, create_model, label_names

__all__ = [
    "AVERAGE_BESIDE",
    "METADATA_KEY",
    "ModelSpec",
    "Weights",
    "check_model_name",
    "create_model",
    "describe_model",
    "describe_weights",
    "label_names",
    "load_beside",
    "load_checkpoint",
    "load_plain",
    "read_checkpoint",
    "require_own_model",
    "stored_spec",
    "weights_origin",
]
