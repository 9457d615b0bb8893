"""Options of a training: their help and bounds, and what of Lightning's does not go with a run."""

import math
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import dataclass, fields
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

from visionattn.checks import check_range
from visionattn.cli.commands import TRAINING_COMMANDS
from visionattn.cli.errors import UsageError
from visionattn.data.module import MAX_SEED
from visionattn.row_files import check_row_file
from visionattn.training.loggers import LoggerName
from visionattn.training.optimization import Optimization


@dataclass(frozen=True)
class RunOptions:
    """Files and averages of a training run.

    Args:
        runs: folder of all runs; each run writes to runs/NAME/NUMBER.
        run_name: NAME of the run's folder; by default the name of the config file, or of the model.
        logger: service that receives the metrics in addition to metrics.csv.
        find_lr: search for the peak learning rate before the training, in place of --model.lr.
        early_stopping: stop after this many validations without a better score; by default never.
        early_stopping_min_delta: smallest change of the score that counts as better.
        save_top_k: number of best checkpoints to keep; best.ckpt is the best of them.
        ema: decay of an exponential moving average of the weights, such as 0.9999, which is then validated and saved
            as the best; by default none.
        save_every_n_steps: steps between two writings of last.ckpt within an epoch; 0 to write it after epochs only.
    """

    runs: Path = Path("runs")
    run_name: str | None = None
    logger: LoggerName = "csv"
    find_lr: bool = False
    early_stopping: int | None = None
    early_stopping_min_delta: float = 0.0
    save_top_k: int = 1
    ema: float | None = None
    save_every_n_steps: int = 1000


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
    LearningRateFinder: "changes a rate that the schedule sets: pass --find_lr true, whose rate is its peak",
    BatchSizeFinder: "changes the length of an epoch once the schedule is laid out: pass --data.batch_size",
    GradientAccumulationScheduler: "changes the number of updates once the schedule is laid out: pass "
    "--trainer.accumulate_grad_batches",
    ModelPruning: "renames weights, so that no checkpoint would load: leave it out",
    BaseFinetuning: "freezes a part that models here do not have: pass --model.linear_probe or --model.layer_decay",
    BasePredictionWriter: "is for programs: train.py predict writes --output",
}
"""Callbacks that do not go with a run, by what they do and what to use instead."""

SEARCH = (
    *("accelerator", "devices", "num_nodes", "accumulate_grad_batches", "limit_train_batches"),
    *("gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark"),
)
"""Options of the trainer that a search for the learning rate follows."""

COMMON = {
    "config": "file of options, or a shipped config: quickstart",
    "task": "kind of training; its options: --task NAME --help",
    "model.name": "model, such as nat_tiny",
    "model.pretrained": "start from published weights",
    "model.checkpoint_path": "start from the weights in a file",
    "model.lr": "peak learning rate",
    "data.name": "data set: digits, folder, torch/cifar10, ...",
    "data.root": "folder of the images",
    "data.img_size": "height and width in pixels",
    "data.batch_size": "images per step and device",
    "ckpt_path": "checkpoint to resume or apply: file, last or best",
    "runs": "folder of all runs",
    "run_name": "name of the run",
    "output": "file of the predictions, .csv, .json or .parquet",
    "trainer.max_epochs": "number of epochs",
    "trainer.devices": "number of devices",
    "trainer.precision": "32-true, bf16-mixed or 16-mixed",
}
"""Most used options, with a help of one line."""

TRAINING = {
    "": "logger ema save_every_n_steps find_lr early_stopping early_stopping_min_delta save_top_k",
    "model.": "drop_rate drop_path_rate grad_checkpointing l2_penalty linear_probe loss smoothing mixup cutmix "
    "mix_prob mix_switch_prob mix_mode triplet_weight",
    "data.": "no_aug train_interpolation crop_padding crop_from scale ratio hflip vflip color_jitter auto_augment "
    "re_prob re_mode re_count aug_repeats padding instances cache",
    "trainer.": "max_epochs min_epochs max_steps min_steps gradient_clip_val gradient_clip_algorithm max_time "
    "accumulate_grad_batches limit_train_batches num_sanity_val_steps val_check_interval check_val_every_n_epoch "
    "log_every_n_steps logger enable_checkpointing",
}
FIT_ONLY = {prefix + name for prefix, names in TRAINING.items() for name in names.split()}
FIT_ONLY |= {f"model.{field.name}" for field in fields(Optimization)}
"""Options without effect in other commands, whose help leaves them out."""

HELP = {
    "config": "YAML file of options, or the name of a shipped config, such as quickstart.",
    "seed_everything": "seed of weights, order and augmentation; true for a random one.",
    "ckpt_path": "checkpoint of a run: a file, or last or best of the newest run of this name. fit resumes it.",
    "trainer.max_epochs": "number of epochs; -1 for no limit.",
    "trainer.devices": "number of devices, a list of their indices, or auto for all.",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed, ...; by default bf16-mixed on GPUs that compute in it, "
    "and in fit also on CPUs that do.",
    "trainer.enable_autolog_hparams": SUPPRESS,  # without effect: config.yaml holds the options
    **{f"trainer.{name}": SUPPRESS for name in OPTIONS},
}
"""Help of options in place of Lightning's."""

TITLES = {"model": "model", "data": "data", "": "run", "trainer": "trainer (of Lightning)"}
"""Sections of the help, in order."""

PROFILERS: dict[str, type[Profiler]]
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def describe_commands(parser: Any) -> None:
    """Describe the commands of train.py and arrange the help of each."""
    # Private: argparse and jsonargparse have no public way to list the options and commands of a finished parser.
    commands = parser._subcommands_action
    for action in parser._actions:
        if action.dest in ("config", "print_config"):
            action.help = SUPPRESS  # with a section for each command: for programs
    for entry in commands._choices_actions:
        entry.help = TRAINING_COMMANDS[entry.dest]
    for name, command in commands.choices.items():
        command.description = TRAINING_COMMANDS[name]
        command.common, command.titles = COMMON, TITLES
        command.hidden = {"output"} if name == "fit" else FIT_ONLY if name == "predict" else {*FIT_ONLY, "output"}
        for action in command._actions:
            action.help = HELP.get(action.dest, action.help)


def check_options(options: Any, command: str) -> None:
    """Check the options of a command that nothing else looks at before the work begins.

    Raises:
        UsageError: one is out of bounds, contradicts another, or would do nothing or harm.
        ValueError: the file of predictions cannot be written.
    """
    trainer = options.trainer
    check_trainer_options(trainer)
    for option, number, low, high in (
        ("seed_everything", options.get("seed_everything"), 0, MAX_SEED),
        ("ema", options.ema, 0, 1),
        ("save_every_n_steps", options.save_every_n_steps, 0, math.inf),
        ("save_top_k", options.save_top_k, 1, math.inf),
        ("early_stopping", options.early_stopping, 1, math.inf),
        ("early_stopping_min_delta", options.early_stopping_min_delta, 0, math.inf),
        ("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, 1, math.inf),
        ("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch, 1, math.inf),
        ("trainer.gradient_clip_val", trainer.gradient_clip_val, 0, math.inf),
    ):
        check_range(option, number, low, high, error=UsageError)
    if isinstance(trainer.val_check_interval, int | float):  # it may also be a time
        check_range("trainer.val_check_interval", trainer.val_check_interval, 0, above=True, error=UsageError)
    if trainer.fast_dev_run and options.ckpt_path and command == "fit":
        raise UsageError("--trainer.fast_dev_run tries a run from its start: leave out --ckpt_path")
    if trainer.fast_dev_run and options.find_lr and command == "fit":
        raise UsageError("--find_lr needs more batches than --trainer.fast_dev_run has: leave one of them out")
    if options.early_stopping is not None and trainer.limit_val_batches == 0 and command == "fit":
        raise UsageError("--early_stopping needs a validation, and --trainer.limit_val_batches 0 leaves none")
    if options.save_top_k > 1 and trainer.strategy == "fsdp2_sharded":
        raise UsageError(
            f"--save_top_k {options.save_top_k} takes checkpoints of one file: pass --trainer.strategy fsdp2"
        )
    if options.output and command != "predict":
        raise UsageError(f"--output {options.output} is for predict: --runs says where {command} writes")
    if options.output:
        check_row_file(options.output)
    name = Path(options.run_name or "")
    if name.is_absolute() or ".." in name.parts:
        raise UsageError(f"--run_name {name} leads out of --runs: it is a name, or some with / between them")


def check_trainer_options(options: Any) -> None:
    """Refuse options of ``--trainer`` that would do nothing or harm; the error names what to use instead."""
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
    """Refuse callbacks of a user that do not go with a run; ``averaging`` says whether --ema averages weights."""
    for callback in callbacks:
        what = f"--trainer.callbacks: {type(callback).__name__}"
        if type(callback).__module__.startswith("visionattn."):
            raise UsageError(f"{what} is part of train.py already: leave it out")
        if remedy := next((remedy for kind, remedy in CALLBACKS.items() if isinstance(callback, kind)), None):
            raise UsageError(f"{what} {remedy}")
        if averaging and isinstance(callback, WeightAveraging):
            raise UsageError(f"{what} averages weights, and so does --ema: leave one out")


def check_plugins(plugins: Sequence[Any]) -> None:
    """Refuse plugins of a user that would write checkpoints in place of train.py."""
    if wrong := next((plugin for plugin in plugins if isinstance(plugin, CheckpointIO)), None):
        what = f"--trainer.plugins: {type(wrong).__name__}"
        raise UsageError(f"{what} is in the place of the one that writes whole checkpoints only: leave it out")


def search_options(options: Any) -> dict[str, Any]:
    """Return the options of ``--trainer`` that matter to a search for the learning rate."""
    kept = {name: options[name] for name in SEARCH}
    return {**kept, "precision": options.precision or default_precision(options.accelerator)}


def create_profiler(given: Any, folder: Path) -> Any:
    """Return a profiler, for a name one that writes to ``folder``: Lightning's own would only log."""
    return PROFILERS[given](dirpath=folder, filename="profile") if given in PROFILERS else given


def listed(given: Any) -> list[Any]:
    """Return one, several or no objects, as an option takes them, as a list."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


def default_precision(accelerator: Any, trains: bool = True) -> str:
    """Return bfloat16 if a GPU computes in it, or without one, and in training, the CPU; otherwise float32."""
    if accelerator != "cpu" and torch.accelerator.is_available():
        supported = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        supported = trains and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16-mixed" if supported else "32-true"
