"""Options of optimizer and schedule, and the optimizer itself, from timm's factory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from torch import nn

import visionattn.training.kar3  # noqa: F401  makes kar3 one of timm's optimizers
from visionattn.checks import check_range
from visionattn.layers.pointwise import is_wrapped
from visionattn.suggestions import suggest

Schedule = Literal["cosine", "tanh", "step", "multistep", "poly", "wsd", "constant"]

NOT_NEGATIVE = "lr lr_base min_lr warmup_lr warmup_epochs cooldown_epochs weight_decay momentum layer_decay agc"
DEFAULT_LR = 1e-3
REFERENCE_BATCH = 256
"""``lr_base`` is the rate for this many images per update."""


@dataclass(frozen=True)
class Optimization:
    """Optimizer, learning-rate schedule and regularisation of a training.

    Args:
        opt: optimizer, one of timm's, or ``kar3``, Terminator's.
        lr: peak learning rate; 0.001 if neither this nor ``lr_base`` is given.
        lr_base: peak learning rate for a batch of 256, scaled to the images of one update (batch size times devices
            times accumulation).
        bias_lr_factor: factor of the learning rate of biases.
        weight_decay: weight decay; not applied to biases and norms.
        momentum: momentum, for optimizers that have one.
        layer_decay: factor between the learning rates of successive layers, for fine-tuning.
        opt_kwargs: further arguments of the optimizer, e.g. ``{betas: [0.9, 0.95]}``.
        agc: factor of adaptive gradient clipping, which spares the head; 0 for none.
        sched: shape of the learning-rate schedule over the run.
        warmup_epochs: linear warm-up, part of the run and at most a quarter of it.
        warmup_lr: learning rate at the start of the warm-up.
        cooldown_epochs: epochs at ``min_lr`` at the end, at most a quarter of the run.
        min_lr: learning rate at the end of the schedule.
        sched_on_updates: change the rate after each update instead of each epoch.
        sched_kwargs: further arguments of timm's scheduler factory.

    Raises:
        ValueError: a number is out of bounds, or both ``lr`` and ``lr_base`` are given.
    """

    opt: str = "adamw"
    lr: float | None = None
    lr_base: float | None = None
    bias_lr_factor: float = 1.0
    weight_decay: float = 0.05
    momentum: float = 0.9
    layer_decay: float | None = None
    opt_kwargs: dict[str, Any] | None = None
    agc: float | None = None
    sched: Schedule = "cosine"
    warmup_epochs: float = 0.0
    warmup_lr: float = 1e-6
    cooldown_epochs: float = 0.0
    min_lr: float = 0.0
    sched_on_updates: bool = True
    sched_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.lr is not None and self.lr_base is not None:
            raise ValueError(f"--model.lr {self.lr} and --model.lr_base {self.lr_base} exclude each other: pass one")
        for option in NOT_NEGATIVE.split():
            check_range(f"model.{option}", getattr(self, option), 0)
        check_range("model.bias_lr_factor", self.bias_lr_factor, 0, above=True)

    def peak_rate(self, images_per_update: int) -> float:
        """Return the peak learning rate."""
        if self.lr_base is not None:
            return self.lr_base * images_per_update / REFERENCE_BATCH
        return DEFAULT_LR if self.lr is None else self.lr


def create_optimizer(
    model: nn.Module, options: Optimization, lr: float, others: Sequence[nn.Module] = ()
) -> torch.optim.Optimizer:
    """Create an optimizer over the trainable parameters; biases, norms and ``no_weight_decay()`` are not decayed.

    Args:
        model: model, whose ``group_matcher`` and ``no_weight_decay`` define the parameter groups.
        options: optimizer and its options.
        lr: peak learning rate.
        others: further modules with trainable parameters, such as a loss, without layer decay. Their parameters may be
            the only trainable ones.

    Raises:
        ValueError: an unknown optimizer or option.
    """
    known = [str(name) for name in list_optimizers()]
    if options.opt.lower() not in known:
        raise ValueError(f"unknown optimizer {options.opt!r} (--model.opt){suggest(options.opt, known)}")
    added = (group for module in others for group in param_groups_weight_decay(module, options.weight_decay))
    groups = [group for group in added if group["params"]]
    frozen = not any(parameter.requires_grad for parameter in model.parameters())
    further = options.opt_kwargs or {}
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups if frozen else model,
            opt=options.opt,
            lr=lr,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            layer_decay=None if frozen else options.layer_decay,
            **further,
        )
    except TypeError as error:
        raise ValueError(f"optimizer {options.opt!r}, --model.opt_kwargs {further}: {error}") from error
    for group in [] if frozen else groups:
        optimizer.add_param_group(group)
    optimizer.register_load_state_dict_pre_hook(_keep_options)
    optimizer.register_load_state_dict_post_hook(_lay_out_as_parameters)
    if options.bias_lr_factor != 1:
        _scale_bias_rate(optimizer, [model, *others], options.bias_lr_factor)
    _fuse(optimizer)
    return optimizer


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """Let one of torch's optimizers update all parameters on CPUs in one operator.

    An optimizer that is made with ``fused=True`` also unscales gradients, so that Lightning refuses to clip them.
    """
    for group in optimizer.param_groups:
        plain = all(parameter.device.type == "cpu" and not is_wrapped(parameter) for parameter in group["params"])
        if plain and "fused" in group and group["fused"] is None and not group["foreach"]:
            group["fused"] = True


def _keep_options(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state with the options that ``optimizer`` was made with, its rates among them."""
    own, theirs = optimizer.param_groups, saved["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in groups] for groups in (own, theirs))
    if sizes != saved_sizes:
        raise ValueError(
            f"the checkpoint's optimizer has groups of {saved_sizes} parameters, not {sizes}: start a new run from its "
            "weights with --model.checkpoint_path in place of --ckpt_path"
        )
    kept = [{**old, **new, "params": old["params"]} for new, old in zip(own, theirs, strict=True)]
    return {**saved, "param_groups": kept}


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Lay a loaded state out in memory as the parameters are.

    The fused operator pairs numbers by their places in memory, and a run may resume in another memory format.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            alike = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if alike and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _scale_bias_rate(optimizer: torch.optim.Optimizer, modules: Sequence[nn.Module], factor: float) -> None:
    """Multiply the learning rate of all biases by ``factor``; the schedule, made later, reads it."""
    biases = {p for module in modules for name, p in module.named_parameters() if name.endswith("bias")}
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if parameter in biases]
        if own:
            group["params"] = [parameter for parameter in group["params"] if parameter not in biases]
            scale = factor * group.get("lr_scale", 1.0)
            optimizer.add_param_group({**group, "params": own, "lr_scale": scale})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
