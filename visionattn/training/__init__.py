"""Parts of a training: models and weights to start from, optimizers, schedules, checkpoints, run folders."""

from typing import TYPE_CHECKING

from visionattn.lazy import lazy_exports
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
from visionattn.training.optimization import Optimization, create_optimizer

if TYPE_CHECKING:
    from visionattn.training.checkpoints.callbacks import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint

__all__ = [
    "AVERAGE_BESIDE", "METADATA_KEY", "AtomicCheckpointIO", "BestCheckpoint", "LastCheckpoint", "ModelSpec",
    "Optimization", "Weights", "check_model_name", "create_model", "create_optimizer", "describe_model",
    "describe_weights", "label_names", "load_beside", "load_checkpoint", "load_plain", "read_checkpoint",
    "require_own_model", "stored_spec", "weights_origin",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(
    __name__, {"checkpoints.callbacks": "AtomicCheckpointIO BestCheckpoint LastCheckpoint"}
)
