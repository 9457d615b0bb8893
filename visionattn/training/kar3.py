"""Terminator's optimizer; importing this module registers it with timm as ``kar3``."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.optim import OptimInfo
from timm.optim._optim_factory import default_registry  # private: timm.optim does not export the registry
from torch import Tensor
from torch.optim.optimizer import Optimizer


class Kar3(Optimizer):
    """Sign descent along the gradient and two averages of the gradients before it.

    ``p -= lr · (sign(g) + sign(m1) + sign(m2))``, then ``m_i = β_i · m_i + (1 − β_i) · g``: the averages lag one step
    behind. If the three agree, a weight moves by ``3 · lr``, otherwise by ``lr``. A constant factor of the loss
    has no effect.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay of the two averages, the faster first.
        weight_decay: weight decay, decoupled from the gradient as in AdamW.

    Raises:
        ValueError: a number is out of bounds.
        RuntimeError: in ``step``, if gradients are sparse.

    Source: the code released with Terminator (HyperZ·Z·W, 2024, https://arxiv.org/abs/2401.17948).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), e.g. [0.5, 0.95], got {list(betas)}")
        if weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters once; return the result of ``closure``, which recomputes loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            grads = [param.grad for param in params]
            if any(grad.is_sparse for grad in grads):
                raise RuntimeError("Kar3 takes no sparse gradients: choose another optimizer (--model.opt)")
            lr, decay = group["lr"], group["weight_decay"]
            averages = [[self._average(param, index) for param in params] for index in (1, 2)]
            # Private: torch has no public function that updates a list of tensors in few kernels.
            if decay:
                torch._foreach_mul_(params, 1 - lr * decay)
            for direction in (grads, *averages):
                torch._foreach_add_(params, torch._foreach_sign(direction), alpha=-lr)
            for average, beta in zip(averages, group["betas"], strict=True):
                torch._foreach_lerp_(average, grads, 1 - beta)
        return loss

    def _average(self, param: Tensor, index: int) -> Tensor:
        state, name = self.state[param], f"exp_avg{index}"
        if name not in state:
            state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        average: Tensor = state[name]
        return average


default_registry.register(
    OptimInfo("kar3", Kar3, "Signs of the gradient and of two averages of it", has_eps=False, has_betas=True)
)
