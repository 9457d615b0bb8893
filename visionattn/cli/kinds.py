"""What train.py can train: the value of --task, and the classes behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from visionattn.cli.configs import OPTIONS, find_configs, given_options, read_config
from visionattn.cli.errors import UsageError
from visionattn.data import ImageClassificationData, ReidData
from visionattn.data.module import ImageData
from visionattn.data.scenes import SceneData
from visionattn.tasks.checkpoint import TaskName
from visionattn.tasks.classification import ClassificationTask
from visionattn.tasks.fine_grained import FineGrainedTask
from visionattn.tasks.masked_autoencoding import MaskedAutoencodingTask
from visionattn.tasks.object_discovery import ObjectDiscoveryTask
from visionattn.tasks.reid import ReidTask
from visionattn.tasks.training import TrainingTask


@dataclass(frozen=True)
class Kind:
    """One kind of training.

    Attributes:
        task: its LightningModule.
        data: its DataModule.
        monitor: what best.ckpt is the best by.
        score: the same in words.
        mode: whether the largest (``max``) or the smallest value is the best.
        command: of eval.py, that evaluates it; None where it is for fine-tuning.
    """

    task: type[TrainingTask]
    data: type[ImageData]
    monitor: str = "val_top1"
    score: str = "top-1"
    mode: Literal["max", "min"] = "max"
    command: str | None = "classify"

    def tell(self, score: float) -> str:
        """A score in words; what is better the larger it is, is a rate."""
        return f"{self.score} {100 * score:.2f}%" if self.mode == "max" else f"{self.score} {score:.4f}"


KINDS: dict[TaskName, Kind] = {
    "classification": Kind(ClassificationTask, ImageClassificationData),
    "fine_grained": Kind(FineGrainedTask, ImageClassificationData),
    "reid": Kind(ReidTask, ReidData, "val_mAP", "mAP", command="reid"),
    "mae": Kind(MaskedAutoencodingTask, ImageClassificationData, "val_loss", "loss", "min", command=None),
    "object_discovery": Kind(ObjectDiscoveryTask, SceneData, "val_fg_ari", "FG-ARI", command="discover"),
}


def find_task(argv: Sequence[str]) -> TaskName:
    """The task that the command line or its config files name; of several the last one, as for any option.

    The parser cannot be asked, for its options are those of the task.

    Raises:
        UsageError: an unknown task.
    """
    found: Any = "classification"
    for option, value in given_options(find_configs(argv)):
        if option == "--task":
            found = value
        elif option in OPTIONS:
            found = _task_in(value, found)
    if found not in get_args(TaskName):
        raise UsageError(f"unknown --task {found!r}: choose one of {', '.join(get_args(TaskName))}")
    return found


def _task_in(config: str, otherwise: Any) -> Any:
    """What a config file has under ``task``; what is wrong with the file is told by the parser."""
    try:
        values = read_config(config)
    except ValueError:
        return otherwise
    # A file for all of train.py, before the command, has a section for each command.
    sections = [values, *(section for section in values.values() if isinstance(section, dict))]
    return next((section["task"] for section in sections if isinstance(section.get("task"), str)), otherwise)
