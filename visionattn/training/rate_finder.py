"""Search for the peak learning rate of a training, by Lightning's range test on copies of the model and the data."""

import io
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.tuner import Tuner
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from visionattn.errors import UserError
from visionattn.training.divergence import DivergenceCheck
from visionattn.training.random_state import same_random_state
from visionattn.viz.rates import save_rate_search

LOWEST, HIGHEST, UPDATES = 1e-6, 1.0, 100
"""Rates of a search, from the lowest to the highest, one per update."""
WINDOW = 21
"""Updates over which losses are averaged, more than a factor of 10 of the rate; fewer follow the noise of batches."""


@dataclass(frozen=True)
class RateSearch:
    """Losses of a training whose rate rose from update to update.

    Attributes:
        rates: Rates of the updates.
        losses: Their losses [updates]; the last ones may not be finite.
    """

    rates: list[float]
    losses: Tensor

    @property
    def smooth(self) -> tuple[list[float], Tensor]:
        """Rates and mean losses of the windows, each at the middle of its window, as far as all are finite."""
        windows = self.losses.unfold(0, WINDOW, 1) if len(self.losses) >= WINDOW else self.losses.new_zeros(0, WINDOW)
        finite = windows[windows.isfinite().all(1)]
        return self.rates[WINDOW // 2 :][: len(finite)], finite.mean(1)

    def best_rate(self) -> float:
        """Return the rate at which the mean loss falls fastest, per factor of the rate.

        Lightning's suggestion divides by the rate itself, which favours the lowest rates, and its mean lags behind.

        Raises:
            UserError: The loss falls nowhere, or was finite for too few updates.
        """
        rates, means = self.smooth
        slopes = torch.gradient(means)[0] if len(means) > 1 else means.new_ones(1)
        if slopes.min() >= 0:
            raise UserError(
                f"--find_lr: the loss falls at none of {len(self.rates)} rates from {self.rates[0]:g} to "
                f"{self.rates[-1]:g}: look at the data, or pass --model.lr"
            )
        return float(f"{rates[int(slopes.argmin())]:.2g}")

    def save(self, path: Path) -> None:
        """Draw losses and the best rate."""
        middles, means = self.smooth
        save_rate_search(self.rates, self.losses.tolist(), middles, means.tolist(), self.best_rate(), path)


class _Losses(DivergenceCheck):
    """Keep all losses, by rate, in place of a check: a search may diverge."""

    def __init__(self, task: Any) -> None:
        super().__init__("lr")
        self.task, self.by_rate = task, dict[float, list[Tensor]]()

    def note(self, loss: Tensor, step: int, epoch: int) -> None:
        """Keep a loss; batches that are accumulated to one update have one rate."""
        rate = self.task.lr_schedulers().get_last_lr()[0]
        self.by_rate.setdefault(rate, []).append(loss.detach().float().cpu())


def search_rate(task: Any, data: Any, options: Mapping[str, Any]) -> RateSearch:
    """Train with a rate that rises from update to update; random states stay as they are.

    Args:
        task: LightningModule of a training; its weights are of no use afterwards. Parts of the model keep their factors
            of the rate, as by ``layer_decay``.
        data: Its DataModule, which keeps no images in memory.
        options: Arguments of the trainer: devices, precision, accumulation of batches, clipping of gradients.

    Raises:
        UserError: Several devices take part.
    """
    losses = task.divergence = _Losses(task)
    data.cache = 0.0  # its images would stay in memory beside those of the training
    with TemporaryDirectory() as folder, same_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training repeats them
        trainer = Trainer(**{**options, **_SETTINGS, "max_steps": UPDATES, "default_root_dir": folder})
        if trainer.world_size > 1:
            raise UserError("--find_lr runs on one device: pass --trainer.devices 1, then the rate that it finds")
        hook = register_optimizer_step_pre_hook(_scale_rates)
        try:
            with redirect_stderr(io.StringIO() if not sys.stderr.isatty() else sys.stderr):  # a bar per update
                Tuner(trainer).lr_find(
                    task, datamodule=data, min_lr=LOWEST, max_lr=HIGHEST, num_training=UPDATES, update_attr=False
                )
        finally:
            hook.remove()
    return RateSearch([*losses.by_rate], torch.stack([torch.stack(each).mean() for each in losses.by_rate.values()]))


_SETTINGS: dict[str, Any] = {
    "max_epochs": -1,
    "check_val_every_n_epoch": sys.maxsize,  # Lightning's search overrides limits of the validation
    "num_sanity_val_steps": 0,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
"""Arguments of the trainer in a search."""


def _scale_rates(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Multiply each group's rate by its factor, as timm's schedules do; the search sets all rates after each update."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)
