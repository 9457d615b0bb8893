"""Optimizers of many heads: one of each kind, with a group of parameters for each learning rate."""

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from timm.optim import Lars
from timm.scheduler import CosineLRScheduler
from torch import nn

from visionattn.probing.protocols.candidates import Candidate, OptimizerName


class Optimizers:
    """AdamW and LARS over the parameters of many heads, with a warm-up and a cosine for each rate.

    Heads keep their own parameters, so that heads of one rate make a group of torch's fused AdamW or of timm's LARS.
    Heads without gradients, which have stopped, are skipped. `total_steps` include `warmup_steps`.
    """

    def __init__(self, trained: Iterable[tuple[Candidate, nn.Module]], total_steps: int, warmup_steps: int) -> None:
        groups: dict[OptimizerName, dict[tuple[float, float, bool], list[nn.Parameter]]]
        groups = {"adamw": defaultdict(list), "lars": defaultdict(list)}
        for candidate, head in trained:
            for parameter in head.parameters():
                is_matrix = parameter.dim() > 1
                decay = candidate.weight_decay if is_matrix else 0.0
                groups[candidate.optimizer][candidate.lr, decay, is_matrix].append(parameter)
        makers: dict[OptimizerName, Any] = {
            "adamw": partial(torch.optim.AdamW, fused=True),
            "lars": partial(Lars, momentum=0.9, trust_coeff=0.001, eps=0.0),
        }
        # AdamW takes no notice of `always_adapt`, by which LARS scales the steps of matrices without weight decay.
        self._optimizers: list[torch.optim.Optimizer] = [
            makers[name](
                [
                    {"params": parameters, "lr": lr, "weight_decay": decay, "always_adapt": is_matrix}
                    for (lr, decay, is_matrix), parameters in of_name.items()
                ]
            )
            for name, of_name in groups.items()
            if of_name
        ]
        rising: Any = {"warmup_t": warmup_steps, "warmup_prefix": True}
        self._schedules = [
            CosineLRScheduler(optimizer, total_steps - warmup_steps, t_in_epochs=False, **rising)
            for optimizer in self._optimizers
        ]

    def step(self, number: int) -> None:
        """Update all parameters that have gradients, at the rates of this step, and clear gradients."""
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            schedule.step_update(number)
            optimizer.step()
            optimizer.zero_grad()

    def state(self) -> list[dict[str, Any]]:
        """Return the state for `load`."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state` returned."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)
