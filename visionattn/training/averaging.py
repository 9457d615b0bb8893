"""Averages of the weights over a training."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import AveragedModel


class MovingAverage(EMAWeightAveraging):
    """Lightning's average of weights and buffers, but for buffers that are moving averages already: it copies these.

    A module names them in an attribute ``moving_averages``.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Update the average."""
        super().on_train_batch_end(trainer, pl_module, *args)
        average = self._average_model
        assert isinstance(average, AveragedModel)
        for ours, theirs in zip(average.module.modules(), pl_module.modules(), strict=True):
            for name in getattr(theirs, "moving_averages", ()):
                getattr(ours, name).copy_(getattr(theirs, name))
