"""The kinds of training: one LightningModule for each value of ``--task``."""

from visionattn.tasks.base import TrainingTask
from visionattn.tasks.classification import ClassificationTask
from visionattn.tasks.fine_grained import FineGrainedTask
from visionattn.tasks.masked_autoencoding import MaskedAutoencodingTask
from visionattn.tasks.object_discovery import ObjectDiscoveryTask
from visionattn.tasks.recall import RecallTask
from visionattn.tasks.reid import ReidTask
from visionattn.training.divergence import DivergenceError

__all__ = [
    "TASKS", "ClassificationTask", "DivergenceError", "FineGrainedTask", "MaskedAutoencodingTask",
    "ObjectDiscoveryTask", "RecallTask", "ReidTask", "TrainingTask",
]  # fmt: skip

TASKS: dict[str, type[TrainingTask]] = {
    task.kind: task
    for task in (ClassificationTask, FineGrainedTask, ReidTask, MaskedAutoencodingTask, ObjectDiscoveryTask, RecallTask)
}
"""Task classes by their ``kind``. Commands, callbacks and model cards take everything that they need from the class."""
