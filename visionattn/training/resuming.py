"""Checks that a run can resume from a checkpoint: optimizer and length must fit."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from visionattn.words import counted

Options = Mapping[str, Any]

SHAPES_STATE: dict[str, Callable[[Options], Any]] = {
    "opt": lambda options: options["opt"].lower(),
    # Flags such as amsgrad add averages; numbers may change.
    "opt_kwargs": lambda options: {k: v for k, v in (options["opt_kwargs"] or {}).items() if isinstance(v, bool)},
    "momentum": lambda options: options["opt"].lower().startswith("rmsprop") and options["momentum"] != 0,
    "linear_probe": lambda options: options["linear_probe"],
    "layer_decay": lambda options: options["layer_decay"] is not None,
    "weight_decay": lambda options: options["layer_decay"] is None and options["weight_decay"] != 0,
    "bias_lr_factor": lambda options: options["bias_lr_factor"] != 1,
    "center_weight": lambda options: options["center_weight"] != 0,
}
"""For each option, the part that shapes the optimizer's state: its averages and its groups of parameters."""


def check_optimizer(path: Any, held: Options, own: Options) -> None:
    """Check that the optimizer's state in the checkpoint at ``path`` fits a run.

    ``held`` are the options of the run that wrote it, as far as its version had them, ``own`` those of this run.

    Raises:
        ValueError: it does not fit; the message names the options that differ, and the remedy.
    """
    held = {**own, **held}
    changed = [name for name in SHAPES_STATE if name in own and held[name] != own[name]]
    differing = [name for name in changed if SHAPES_STATE[name](held) != SHAPES_STATE[name](own)]
    if differing:
        theirs, ours = (" ".join(_as_given(name, values[name]) for name in differing) for values in (held, own))
        raise ValueError(
            f"{path} was trained with {theirs}, not {ours}, so that its optimizer cannot be resumed: pass the same, or "
            "start a new run from its weights with --model.checkpoint_path in place of --ckpt_path"
        )


def _as_given(name: str, value: Any) -> str:
    return f"--model.{name} {value if isinstance(value, str) else json.dumps(value)}"


def check_length(path: Any, checkpoint: Mapping[str, Any], max_epochs: int | None, max_steps: int) -> None:
    """Check that a run is not shorter than its checkpoint; a length of None or -1 is no bound.

    Raises:
        ValueError: it is shorter; the message names the option to raise.
    """
    begun = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"]
    lengths = (("max_epochs", max_epochs, begun), ("max_steps", max_steps, checkpoint["global_step"]))
    for option, bound, reached in lengths:
        if bound not in (None, -1) and reached > bound:
            raise ValueError(
                f"{path} has been trained for {counted(reached, option[4:-1])}, more than --trainer.{option} {bound}: "
                f"pass --trainer.{option} {reached} or more"
            )
