"""Early stopping on the score that selects the best checkpoint."""

from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from visionattn.training.runs import say
from visionattn.words import counted


class EarlyStop(EarlyStopping):
    """Stop a training whose score has not improved for some validations, and say so in a line.

    Args:
        mode: whether the largest (``max``) or the smallest score is the best.
        patience: validations without an improvement after which it stops.
        min_delta: smallest change that is an improvement.
    """

    def __init__(self, mode: Literal["max", "min"], patience: int, min_delta: float = 0.0) -> None:
        # A score that is not finite counts as no improvement; Lightning would stop at once, without a word.
        options: dict[str, Any] = {"check_finite": False, "check_on_train_epoch_end": False}
        super().__init__("", min_delta, patience, mode=mode, **options)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Ask the task for the score, which may depend on the data."""
        super().setup(trainer, pl_module, stage)
        self.monitor = pl_module.monitor

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to count; the options of a resumed run say how long to wait."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Print why the training has stopped."""
        if self.wait_count >= self.patience and trainer.should_stop:
            best = pl_module.describe_score(float(self.best_score))
            say(f"stopped early: val {best} has not improved in {counted(self.wait_count, 'validation')}")
