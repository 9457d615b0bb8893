"""The commands fit, validate, test and predict: LightningCLI with run folders, resuming, and errors of one line."""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import visionattn.models  # noqa: F401  registers them
from visionattn.cli.errors import DEBUG_HINT, UsageError, describe, one_line
from visionattn.cli.kinds import find_task
from visionattn.cli.parsing import ConciseParser
from visionattn.cli.progress import LightningProgress
from visionattn.cli.run import TrainingRun
from visionattn.cli.train import DESCRIPTION
from visionattn.cli.trainer_options import (
    RunOptions,
    check_callbacks,
    check_options,
    check_plugins,
    create_profiler,
    default_precision,
    describe_commands,
    listed,
    search_options,
)
from visionattn.tasks import TASKS
from visionattn.tasks.start import adopt_model, describe_start, match_classes, start_from
from visionattn.training import ModelSpec, require_own_model, stored_spec
from visionattn.training.callbacks import EpochReport
from visionattn.training.checkpoints.callbacks import AtomicCheckpointIO, read_training
from visionattn.training.loggers import check_logger
from visionattn.training.predictions import PredictionWriter
from visionattn.training.quiet import quiet_lightning
from visionattn.training.rate_finder import HIGHEST, LOWEST, UPDATES, RateSearch, search_rate
from visionattn.training.runs import RunFolder, SameCheckpoint, find_checkpoint, is_rank_zero, name_run, new_run, say
from visionattn.words import counted


class TrainingParser(ConciseParser, LightningArgumentParser):
    """Parser without abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)


class TrainingCLI(LightningCLI):
    """LightningCLI over the task that the command line names, and its data.

    Args:
        argv: the command line.
        prog: the program before it: ``train.py``, ``visionattn`` or ``visionattn train``.
        callbacks: further callbacks of a program that trains; ``config.yaml`` does not list them.
    """

    def __init__(self, argv: list[str], prog: str = "train.py", callbacks: Sequence[Callback] = ()) -> None:
        self.argv, self.prog, self.further_callbacks = argv, prog, callbacks
        self.task = TASKS[find_task(argv)]
        self.resume: Path | None = None
        self.resumed_run: RunFolder | None = None
        self.run: TrainingRun | None = None  # once the trainer is built
        self.search: RateSearch | None = None
        self.began = time.monotonic()
        super().__init__(
            self.task,
            self.task.data_class,
            parser_class=TrainingParser,
            parser_kwargs={"prog": prog, "description": DESCRIPTION},
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"max_epochs": 30, "use_distributed_sampler": False, "enable_model_summary": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=argv,
        )

    # Parsing

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's needs no command line
        """Return the command that the command line names, else all, with the options that make no sense in a shell.

        Each needs a parser of its own, which takes some tenths of a second.
        """
        more = {"weights_only", "return_predictions"}
        commands = {name: skipped | more for name, skipped in LightningCLI.subcommands().items()}
        return {name: commands[name] for name in self.argv[:1] if name in commands} or commands

    def setup_parser(self, *args: Any) -> None:
        """Build the parsers and arrange their help."""
        super().setup_parser(*args)
        describe_commands(self.parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run."""
        kinds = "; ".join(f"{name}: {task.help_text}" for name, task in TASKS.items())
        parser.add_argument(
            "--task",
            choices=list(TASKS),
            default=next(iter(TASKS)),
            help=f"kind of training ({kinds}). The options of --model and --data depend on it: see --task NAME --help",
        )
        parser.add_class_arguments(RunOptions)
        parser.add_argument(
            "--output",
            type=Path | None,
            default=None,
            help="file of the predictions, .csv, .json or .parquet; by default a new predictions.csv.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse without Lightning's warning about arguments that do not come from sys.argv."""
        try:
            self.config = parser.parse_args(args)
        except UsageError as error:
            if not re.match(r"unknown (option|key) (--)?(model|data)\b", str(error)):
                raise
            others = ", ".join(name for name in TASKS if name != self.task.kind)
            raise UsageError(f"{error} (options of --task {self.task.kind}; there are also {others})") from error
        check_options(self.options, self.config.subcommand)
        self.run_name = name_run(self.options)

    @property
    def options(self) -> Any:
        """Options of the chosen command."""
        return self.config[self.config.subcommand]

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint of ``--ckpt_path``. Lightning would let its options override the command line's."""
        wanted, command = self.options.ckpt_path, self.config.subcommand
        if wanted is None:
            return
        self.resume, self.resumed_run = find_checkpoint(wanted, self.options.runs, self.run_name)
        if self.resume is None:
            place = self.options.runs / self.run_name
            if command != "fit" or wanted != "last":
                raise UsageError(f"no {wanted} checkpoint under {place}: pass --ckpt_path FILE or --run_name NAME")
            say(f"no checkpoint under {place} to resume: training starts from scratch")
            self.options.ckpt_path = None
            return
        self.options.ckpt_path = str(self.resume)
        checkpoint = read_training(self.resume, shards=True)
        self.resume_step = int(checkpoint.get("global_step", 0))
        spec = stored_spec(checkpoint, self.resume)
        if spec is None:
            raise ValueError(f"{self.resume} is not a checkpoint of train.py: --model.checkpoint_path starts from it")
        self.spec, self.place = spec, checkpoint.get(self.task.data_class.__qualname__)
        self.rate_before = checkpoint.get("hyper_parameters", {}).get("lr")
        if self.spec.task != self.task.kind:
            raise UsageError(f"{self.resume} was trained with --task {self.spec.task}: pass that option here")
        if command != "fit":
            if self.options.model.get("name") != spec.model:
                require_own_model(spec, self.resume, "--model.name")
            adopt_model(self.options, spec)

    # Building

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; an error gives the folder of the run free again."""
        resumed = None if self.resume is None else self.spec
        spec = start_from(self.options, self.task, self.config.subcommand, resumed)
        if self.options.find_lr and self.subcommand == "fit":
            self._find_rate(spec)
        try:
            super().instantiate_classes()
            self.model.starts_from = spec
            if spec is not None:
                if self.datamodule.weights_decide:  # its images are prepared
                    say(describe_start(spec, self.datamodule, self.options.model, self.resume))
                match_classes(spec, self.datamodule, fresh=self.subcommand == "fit" and resumed is None)
        except BaseException:
            self._leave_run()
            raise
        if self.resume is not None:
            self.model.resumed = True
            if self.place is not None:
                # Lightning also does this; with models that are divided, only once the loader is there.
                self.datamodule.load_state_dict(self.place)

    def _find_rate(self, spec: ModelSpec | None) -> None:
        """Set the learning rate to the one that a search finds, or that the resumed run found."""
        model = self.options.model
        if self.resume is not None:
            if self.rate_before is None:
                raise UsageError(f"{self.resume} was trained without --find_lr: leave it out to resume")
            model.lr, model.lr_base = self.rate_before, None
            return
        say(f"searching for the learning rate: {UPDATES} updates at rates from {LOWEST:g} to {HIGHEST:g}")
        data = self.task.data_class(**self.options.data)
        if spec is not None:
            match_classes(spec, data, fresh=True)
        trainer = search_options(self.options.trainer)
        self.search = search_rate(self.task(**{**model, "lr": None, "lr_base": None}), data, trainer)
        given = {f"--model.{name}": model[name] for name in ("lr", "lr_base") if model[name] is not None}
        model.lr, model.lr_base = self.search.best_rate(), None
        instead = "".join(f", in place of {option} {value:g}" for option, value in given.items())
        say(f"learning rate {model.lr:g}: there the loss fell fastest (find_lr.png){instead}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with what every run has: progress, atomic checkpoints, loggers, averaging."""
        given, built = self.options.trainer, self._get(self.config_init, "trainer")
        callbacks, plugins = [*listed(built.callbacks), *self.further_callbacks], listed(built.plugins)
        check_callbacks(callbacks, averaging=self.options.ema is not None)
        check_plugins(plugins)
        bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
        interactive = bool(bars) or (given.enable_progress_bar is not False and sys.stdout.isatty())
        callbacks += [RichProgressBar(leave=True)] if interactive and not bars else []
        if self.subcommand != "fit" and not interactive and given.enable_progress_bar is not False:
            callbacks.append(LightningProgress())
        callbacks.append(SameCheckpoint(self.resume))
        settings: dict[str, Any] = {
            "plugins": [*plugins, AtomicCheckpointIO()],
            "enable_progress_bar": interactive,
            "logger": False,
            "enable_checkpointing": False,
            "precision": given.precision or default_precision(given.accelerator, self.subcommand == "fit"),
        }
        if self.subcommand == "fit" and not given.fast_dev_run:
            callbacks += self._begin_run(settings)
        elif self.subcommand == "predict":
            output = self.options.output or Path(RunFolder(Path()).unused("predictions.csv"))
            self.predictions = PredictionWriter(output)
            callbacks.append(self.predictions)
        if self.subcommand == "fit":
            callbacks.append(EpochReport(per_epoch=not interactive))
        else:
            self.save_config_callback = None
        settings["profiler"] = create_profiler(built.profiler, Path(settings.get("default_root_dir", "")))
        try:
            return super().instantiate_trainer(**settings, callbacks=callbacks, **kwargs)
        except (MisconfigurationException, TypeError, ValueError) as error:
            if DEBUG_HINT not in describe(error):
                raise
            raise UsageError(f"--trainer: {one_line(str(error))}") from error

    def _begin_run(self, settings: dict[str, Any]) -> list[Callback]:
        """Claim the folder of the run; add its loggers to the trainer's settings, and return its callbacks."""
        check_logger(self.options.logger)
        step = None if self.resumed_run is None else self.resume_step
        folder = self.resumed_run or new_run(self.options.runs, self.run_name)
        self.run = TrainingRun(folder, self.options, self.task, step, self.search)
        self.save_config_kwargs["config_filename"] = folder.unused("config.yaml")
        theirs = self._get(self.config_init, "trainer").logger
        keep = self.options.trainer.enable_checkpointing is not False
        settings |= {
            "logger": False if theirs is False else self.run.loggers([] if theirs is True else listed(theirs)),
            "enable_checkpointing": keep,
            "default_root_dir": str(folder.path),
        }
        return self.run.callbacks(checkpoints=keep)

    # Running

    # Private: LightningCLI has no public method around a command, whose errors and end are handled here.
    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; however it ends, name the unreadable images."""
        try:
            super()._run_subcommand(subcommand)
        except MisconfigurationException as error:
            raise ValueError(str(error)) from error
        except (SystemExit, KeyboardInterrupt) as error:
            if self.run is not None:
                self.run.say_how_to_resume(self.trainer, self.prog, self.argv)
            if is_rank_zero() or not isinstance(error, SIGTERMException):
                raise
            # All were stopped in good order. Of processes that it launched, Lightning would take another status for
            # a crash, and kill the first one before it has told.
        finally:
            self._tell_broken()
            self._leave_run()

    def _leave_run(self) -> None:
        if self.run is not None:
            self.run.leave()

    def _tell_broken(self) -> None:
        for split in ("train", "validation", "test", "predict"):
            if broken := self.datamodule.broken(split):
                instead = "replaced" if split == "train" else "left out"
                say(f"{counted(len(broken), f'unreadable {split} image')} {instead}; first {broken[0]}")

    def after_fit(self) -> None:
        """Print score, checkpoint and next command."""
        if self.run is not None:
            self.run.write_summary(self.trainer, self.prog, self.argv)
            self.run.say_outcome(self.trainer, self.prog, time.monotonic() - self.began, self.resume)

    def after_predict(self) -> None:
        """Print where the predictions are."""
        file = self.predictions.file
        say(f"{counted(file.count, 'prediction')} in {file.path}")


@contextmanager
def training_settings() -> Iterator[None]:
    """Compute in TF32 on GPUs that do, without Lightning's hints, as all trainings here do."""
    precision = torch.get_float32_matmul_precision()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    try:
        with quiet_lightning():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def main(argv: list[str], prog: str = "train.py") -> None:
    """Run one command of a training."""
    with training_settings():
        TrainingCLI(argv, prog)
