"""Early stopping on the score that selects the best checkpoint."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from visionattn.training.runs import say
from visionattn.words import counted


class EarlyStop(EarlyStopping):
    """Stop a training whose score has not improved for some validations, and say so in a line.

    Args:
        task: class of the training, whose ``monitor`` is the score.
        patience: validations without an improvement after which it stops.
        min_delta: smallest change that is an improvement.
    """

    def __init__(self, task: Any, patience: int, min_delta: float = 0.0) -> None:
        super().__init__(task.monitor, min_delta, patience, mode=task.mode, check_on_train_epoch_end=False)
        self.task = task

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to count; the options of a resumed run say how long to wait."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print why the training has stopped."""
        if self.wait_count >= self.patience and trainer.should_stop:
            best = self.task.describe_score(float(self.best_score))
            say(f"stopped early: val {best} has not improved in {counted(self.wait_count, 'validation')}")
