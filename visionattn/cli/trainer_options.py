"""Lightning's options, callbacks and plugins that do not go with the runs of train.py, and what to use instead."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from visionattn.cli.errors import UsageError

OPTIONS = {
    "default_root_dir": "name the folder of all runs with --runs",
    "overfit_batches": "train on few images, as --data.limit_per_class N takes them",
    "barebones": "it forbids logs and checkpoints, of which a run consists; leave it out",
    "use_distributed_sampler": "the loaders divide the data among processes themselves; leave it out",
    "model_registry": "nothing is uploaded; visionattn export hub writes a folder for a hub",
}
"""Options that do not go with a run, by what to do instead."""

CALLBACKS: dict[type[Callback], str] = {
    StochasticWeightAveraging: "averages weights after the last checkpoint is written: pass --ema 0.999",
    LearningRateFinder: "changes a rate that the schedule sets: pass --model.lr, which --model.sched follows",
    BatchSizeFinder: "changes the length of an epoch once the schedule is laid out: pass --data.batch_size",
    GradientAccumulationScheduler: "changes the number of updates once the schedule is laid out: pass "
    "--trainer.accumulate_grad_batches",
    ModelPruning: "renames weights, so that no checkpoint would load: leave it out",
    BaseFinetuning: "freezes a part that models here do not have: pass --model.linear_probe or --model.layer_decay",
    BasePredictionWriter: "is for programs: train.py predict writes --output",
}
"""Callbacks that do not go with a run, by what they do and what to use instead."""

COMMANDS = {
    "fit": "Train a model.",
    "validate": "Measure a model on the validation split.",
    "test": "Measure a model on the test split.",
    "predict": "Write what a model says of images without labels.",
}
"""The commands of train.py."""

CKPT_PATH = "checkpoint of an earlier run: a file, or last or best of the newest run of this name. fit resumes from it."

PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def describe_commands(parser: Any) -> None:
    """Describe commands in words of this project: the first lines of Lightning's docstrings break off in mid-sentence.

    Args:
        parser: of all commands.
    """
    commands = parser._subcommands_action
    for entry in commands._choices_actions:
        entry.help = COMMANDS[entry.dest]
    for name, command in commands.choices.items():
        command.description = COMMANDS[name]
        for group in command._action_groups:
            for action in group._group_actions:
                if action.dest == "ckpt_path":
                    group.title, action.help = "Where the weights come from", CKPT_PATH


def check_trainer_options(options: Any) -> None:
    """Check options of ``--trainer`` that Lightning would take, and that would do nothing or harm.

    Raises:
        UsageError: one is set; the message names what to use instead.
    """
    for name, remedy in OPTIONS.items():
        if options[name]:
            raise UsageError(f"--trainer.{name} {options[name]} does not go with train.py: {remedy}")
    for callback in listed(options.callbacks):
        if callback.class_path.endswith(".Timer"):  # which fails before it is built
            raise UsageError("--trainer.callbacks: Timer cannot be written to config.yaml: pass --trainer.max_time")
    low, high = options.min_epochs, options.max_epochs
    if low is not None and high not in (None, -1) and low > high:
        raise UsageError(f"--trainer.min_epochs {low} is more than --trainer.max_epochs {high}: raise the latter")


def check_callbacks(callbacks: Sequence[Callback], averaging: bool) -> None:
    """Check the callbacks that a user adds to those of every run.

    Args:
        callbacks: the user's.
        averaging: whether --ema adds one that averages.

    Raises:
        UsageError: one does not go with a run; the message names what to use instead.
    """
    for callback in callbacks:
        what = f"--trainer.callbacks: {type(callback).__name__}"
        if type(callback).__module__.startswith("visionattn."):
            raise UsageError(f"{what} is part of train.py already: leave it out")
        if remedy := next((remedy for kind, remedy in CALLBACKS.items() if isinstance(callback, kind)), None):
            raise UsageError(f"{what} {remedy}")
        if averaging and isinstance(callback, WeightAveraging):
            raise UsageError(f"{what} averages weights, and so does --ema: leave one out")


def check_plugins(plugins: Sequence[Any]) -> None:
    """Check the plugins that a user adds.

    Raises:
        UsageError: one would write checkpoints in place of train.py.
    """
    for plugin in plugins:
        if isinstance(plugin, CheckpointIO):
            raise UsageError(
                f"--trainer.plugins: {type(plugin).__name__} is in the place of the one that writes whole checkpoints "
                "only: leave it out"
            )


def create_profiler(given: Any, folder: Path) -> Any:
    """Return a profiler, for a name one that writes to ``folder``: Lightning's own would only log.

    Args:
        given: name or profiler; others are for Lightning to refuse.
        folder: of the run.
    """
    return PROFILERS[given](dirpath=folder, filename="profile") if given in PROFILERS else given


def listed(given: Any) -> list[Any]:
    """Return one, several or no objects, as an option takes them, as a list."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


def default_precision(accelerator: Any) -> str:
    """Return bfloat16 if a GPU computes in it, otherwise float32."""
    gpu = accelerator not in ("cpu",) and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
