"""Divergence: losses and weights that are no longer finite."""

import shlex
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class DivergenceError(FloatingPointError):
    """The loss or the weights are no longer finite."""


class DivergenceCheck:
    """Checks of a training that raise a `DivergenceError` with advice on how to continue.

    Args:
        rate_option: the option that sets the learning rate, for the advice.
    """

    def __init__(self, rate_option: str) -> None:
        self.rate_option = rate_option
        self._pending: tuple[Tensor, int, int] | None = None

    def note(self, loss: Tensor, step: int, epoch: int) -> None:
        """Keep a loss, which is checked one step later so that nothing waits for the device."""
        self._pending = loss.detach(), step, epoch

    def check_loss(self, trainer: Any) -> None:
        """Check the last loss; the error names the step and the last good checkpoint."""
        if self._pending is None:
            return
        (loss, step, epoch), self._pending = self._pending, None
        if not torch.isfinite(loss):
            where = f"at step {step} (epoch {epoch})"
            raise DivergenceError(f"the loss became {loss.item():g} {where}; {self.advice(trainer)}")

    def check_weights(self, weights: Iterable[Tensor], trainer: Any) -> None:
        """Check weights before they are saved; of weights that are divided among devices, this process's part."""
        own = [
            value.to_local() if isinstance(value, DTensor) else value for value in weights if value.is_floating_point()
        ]
        if own and not torch.stack([torch.isfinite(value).all() for value in own]).all():
            raise DivergenceError(f"weights are no longer finite at step {trainer.global_step}; {self.advice(trainer)}")

    def advice(self, trainer: Any) -> str:
        """Return how to continue: from which checkpoint, and with which options."""
        # A resumed run that has saved nothing yet still knows its best checkpoint, which may be older than its start.
        last, best = (
            [path for callback in trainer.checkpoint_callbacks if (path := getattr(callback, attribute, ""))]
            for attribute in ("last_model_path", "best_model_path")
        )
        kept = next(filter(None, [*last, trainer.ckpt_path, *best]), None)
        path = shlex.quote(str(kept))
        start = f"resume from the last good checkpoint with --ckpt_path {path} and" if kept else "start again with"
        rate = f"a lower --model.{self.rate_option}" + ("" if kept else ", a longer --model.warmup_epochs")
        return f"{start} {rate} or --trainer.gradient_clip_val 1"
