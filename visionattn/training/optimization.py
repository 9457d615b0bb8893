"""Optimizer and learning-rate schedule, both from timm's factories."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

import visionattn.training.kar3  # noqa: F401  makes kar3 one of timm's optimizers
from visionattn.suggestions import suggest
from visionattn.words import counted

Schedule = Literal["cosine", "tanh", "step", "multistep", "poly", "wsd", "constant"]

MAX_SHARE = 0.25
"""Warm-up and cool-down each take at most this share of a run, so that a shortened run still has its schedule."""


def create_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float,
    layer_decay: float | None,
    options: Mapping[str, Any],
    others: Iterable[nn.Module] = (),
) -> torch.optim.Optimizer:
    """An optimizer of timm over the trainable parameters; biases, norms and ``no_weight_decay()`` are not decayed.

    Args:
        model: gives ``group_matcher`` and ``no_weight_decay``, which the parameter groups follow.
        name: one of ``timm.optim.list_optimizers()``, ``kar3`` among them.
        lr: peak learning rate.
        weight_decay: of the weights that are decayed.
        momentum: where the optimizer has one.
        layer_decay: factor between the learning rates of one layer and the one before it.
        options: further arguments of the optimizer.
        others: further modules with trainable parameters, such as a loss; layer decay is not for them. They may be all
            that is trained.

    Raises:
        ValueError: an unknown optimizer or option.
    """
    known = [str(known) for known in list_optimizers()]
    if name.lower() not in known:
        raise ValueError(f"unknown optimizer {name!r} (--model.opt){suggest(name, known)}")
    groups = [
        group for module in others for group in param_groups_weight_decay(module, weight_decay) if group["params"]
    ]
    frozen = not any(parameter.requires_grad for parameter in model.parameters())
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups if frozen else model,
            opt=name,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            layer_decay=None if frozen else layer_decay,
            **options,
        )
    except TypeError as error:
        raise ValueError(f"optimizer {name!r}, --model.opt_kwargs {dict(options)}: {error}") from error
    for group in [] if frozen else groups:
        optimizer.add_param_group(group)
    optimizer.register_load_state_dict_pre_hook(_keep_options)
    return optimizer


def _keep_options(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state that leaves ``optimizer`` the options it was made with, its rates among them."""
    own, theirs = optimizer.param_groups, saved["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in groups] for groups in (own, theirs))
    if sizes != saved_sizes:
        raise ValueError(
            f"the checkpoint's optimizer has groups of {saved_sizes} parameters, not {sizes}: start a new run from its "
            "weights with --model.checkpoint_path in place of --ckpt_path"
        )
    kept = [{**old, **new, "params": old["params"]} for new, old in zip(own, theirs, strict=True)]
    return {**saved, "param_groups": kept}


def scale_bias_rate(optimizer: torch.optim.Optimizer, module: nn.Module, factor: float) -> None:
    """Lets the biases of ``module`` learn ``factor`` times as fast; to be called before the schedule is made."""
    biases = {parameter for name, parameter in module.named_parameters() if name.endswith("bias")}
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if parameter in biases]
        if own:
            group["params"] = [parameter for parameter in group["params"] if parameter not in biases]
            scale = factor * group.get("lr_scale", 1.0)
            optimizer.add_param_group({**group, "params": own, "lr_scale": scale})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def create_schedule(
    optimizer: torch.optim.Optimizer,
    name: Schedule,
    total_updates: int,
    updates_per_epoch: int,
    warmup_epochs: float,
    warmup_lr: float,
    cooldown_epochs: float,
    min_lr: float,
    on_updates: bool,
    options: Mapping[str, Any],
) -> "RunSchedule":
    """A schedule of timm, laid out over the run: warm-up included, the cool-down at ``min_lr`` at its end.

    Args:
        optimizer: whose groups are scheduled, each scaled by its ``lr_scale``.
        name: shape of the schedule.
        total_updates: optimizer steps of the whole run.
        updates_per_epoch: optimizer steps of an epoch.
        warmup_epochs: length of the linear warm-up, at most a quarter of the run.
        warmup_lr: where the warm-up starts.
        cooldown_epochs: length of the cool-down, at most a quarter of the run.
        min_lr: where the schedule ends.
        on_updates: a new rate after each optimizer step instead of each epoch.
        options: further arguments of ``timm.scheduler.create_scheduler_v2``.

    Raises:
        ValueError: an option that does not fit.
    """
    epochs = total_updates / updates_per_epoch
    warmup, cooldown = (min(length, MAX_SHARE * epochs) for length in (warmup_epochs, cooldown_epochs))
    if not on_updates:
        epochs, warmup, cooldown = max(1, round(epochs)), int(warmup), int(cooldown)
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=name,
            num_epochs=epochs - cooldown,  # type: ignore[arg-type]  # a fraction is welcome where updates are counted
            warmup_epochs=warmup,  # type: ignore[arg-type]
            warmup_lr=warmup_lr,
            min_lr=min_lr,
            step_on_epochs=not on_updates,
            updates_per_epoch=updates_per_epoch,
            **options,
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(f"schedule {name!r}, --model.sched_kwargs {dict(options)}: {error}") from error
    assert isinstance(scheduler, Scheduler)
    return RunSchedule(scheduler, total_updates if on_updates else round(epochs))


class RunSchedule:
    """A schedule of timm over a run, as Lightning takes one. The rates depend on the place in the run alone.

    A checkpoint restores none of it: the options of a resumed run may give it another schedule.

    Attributes:
        length: updates of the run, or its epochs where the rates change with the epoch.
        differs: whether the checkpoint that the run resumed from has another schedule.

    Args:
        scheduler: the schedule.
        length: of the run.
    """

    def __init__(self, scheduler: Scheduler, length: int) -> None:
        self._scheduler, self.length, self.differs = scheduler, length, False

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Whose rates are set."""
        return self._scheduler.optimizer

    def step(self, done: int) -> None:
        """Set the rates that follow after ``done`` updates, or epochs."""
        if self._scheduler.t_in_epochs:
            self._scheduler.step(done)
        else:
            self._scheduler.step_update(done)

    def resume(self, done: int) -> None:
        """Set the rates as :meth:`step` does, and warn if they are not what the checkpoint's schedule would give."""
        self.step(done)
        if self.differs and done < self.length:
            unit = "epoch" if self._scheduler.t_in_epochs else "update"
            rate = max(group["lr"] for group in self.optimizer.param_groups)
            rank_zero_warn(
                f"the learning-rate schedule now spans {counted(self.length, unit)}, as the options say, and not what "
                f"the checkpoint has: it continues with {unit} {done + 1} at a rate of {rate:.3g}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what the schedule is, in plain values."""
        return self._scheduler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare with the schedule in a checkpoint."""
        self.differs = state != self.state_dict()
