"""Learning-rate schedule of a run, from timm's factory."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2

from visionattn.training.optimization import Optimization
from visionattn.words import counted

MAX_SHARE = 0.25
"""Warm-up and cool-down each take at most this share of a run, so that a shortened run keeps its schedule."""


class RunSchedule:
    """A schedule of timm over a run, as Lightning takes one. The rates depend on the place in the run alone.

    A checkpoint does not restore it: the options of a resumed run may define another schedule.

    Attributes:
        length: updates of the run, or epochs if the rates change with the epoch.
        differs: whether the checkpoint that the run resumed from has another schedule.
    """

    def __init__(self, scheduler: Scheduler, length: int) -> None:
        self._scheduler, self.length, self.differs = scheduler, length, False

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer whose rates are set."""
        return self._scheduler.optimizer

    def step(self, done: int) -> None:
        """Set the rates that follow after ``done`` updates or epochs."""
        if self._scheduler.t_in_epochs:
            self._scheduler.step(done)
        else:
            self._scheduler.step_update(done)

    def resume(self, done: int) -> None:
        """Set the rates as :meth:`step` does, and warn if the schedule of the checkpoint would give others."""
        self.step(done)
        if self.differs and done < self.length:
            unit = "epoch" if self._scheduler.t_in_epochs else "update"
            rate = max(group["lr"] for group in self.optimizer.param_groups)
            rank_zero_warn(
                f"the learning-rate schedule now spans {counted(self.length, unit)}, as the options say, and not what "
                f"the checkpoint has: it continues with {unit} {done + 1} at a rate of {rate:.3g}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule as plain values."""
        return self._scheduler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare with the schedule in a checkpoint."""
        self.differs = state != self.state_dict()


def create_schedule(
    optimizer: torch.optim.Optimizer, options: Optimization, total_updates: int, updates_per_epoch: int
) -> RunSchedule:
    """Create the schedule of a run, which starts with the warm-up and ends with the cool-down at ``min_lr``.

    The rate of each group of the optimizer is scaled by its ``lr_scale``.

    Raises:
        ValueError: ``sched_kwargs`` do not fit the schedule.
    """
    epochs = total_updates / updates_per_epoch
    on_updates = options.sched_on_updates
    warmup, cooldown = (min(length, MAX_SHARE * epochs) for length in (options.warmup_epochs, options.cooldown_epochs))
    if not on_updates:
        epochs, warmup, cooldown = max(1, round(epochs)), int(warmup), int(cooldown)
    further = options.sched_kwargs or {}
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=options.sched,
            num_epochs=epochs - cooldown,  # type: ignore[arg-type]  # may be a fraction if updates are counted
            warmup_epochs=warmup,  # type: ignore[arg-type]
            warmup_lr=options.warmup_lr,
            min_lr=options.min_lr,
            step_on_epochs=not on_updates,
            updates_per_epoch=updates_per_epoch,
            **further,
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(f"schedule {options.sched!r}, --model.sched_kwargs {further}: {error}") from error
    assert isinstance(scheduler, Scheduler)
    return RunSchedule(scheduler, total_updates if on_updates else round(epochs))
