"""The commands fit, validate, test and predict: LightningCLI with run folders, resuming, and errors of one line."""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import visionattn  # noqa: F401  registers the models
from visionattn.cli.errors import DEBUG_HINT, UsageError, describe, one_line
from visionattn.cli.kinds import find_task
from visionattn.cli.next_steps import next_command, resume_command, shell_command
from visionattn.cli.parsing import ConciseParser
from visionattn.cli.progress import LightningProgress
from visionattn.cli.trainer_options import (
    RunOptions,
    check_callbacks,
    check_options,
    check_plugins,
    create_profiler,
    default_precision,
    describe_commands,
    listed,
)
from visionattn.output import write_json
from visionattn.tasks import TASKS
from visionattn.tasks.start import adopt_model, describe_start, match_classes, start_from
from visionattn.training import require_own_model, stored_spec
from visionattn.training.callbacks import EpochReport, ExampleSheet, KernelSheet, LearningCurve, Stopwatch
from visionattn.training.checkpoints.callbacks import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, read_training
from visionattn.training.loggers import check_logger, create_loggers
from visionattn.training.predictions import PredictionWriter
from visionattn.training.quiet import quiet_lightning
from visionattn.training.runs import RunFolder, SameCheckpoint, find_checkpoint, is_rank_zero, name_run, new_run, say
from visionattn.training.summary import summarize
from visionattn.words import counted

DESCRIPTION = (
    "Train models for classification, fine-grained classification, re-identification and object discovery, pretrain "
    f"encoders, and apply them. --task ({', '.join(TASKS)}) after the command, or task: in a config file, chooses the "
    "kind of training."
)


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
        self.run: RunFolder | None = None  # the resumed one; once the training begins, the new one
        self.claim: IO[str] | None = None  # lock of its folder
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

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's commands, with the options that make no sense in a shell."""
        more = {"weights_only", "return_predictions"}
        return {name: skipped | more for name, skipped in LightningCLI.subcommands().items()}

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
        self.resume, self.run = find_checkpoint(wanted, self.options.runs, self.run_name)
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
        if self.spec.task != self.task.kind:
            raise UsageError(f"{self.resume} was trained with --task {self.spec.task}: pass that option here")
        if command != "fit":
            if self.options.model.get("name") != spec.model:
                require_own_model(spec, self.resume, "--model.name")
            adopt_model(self.options, spec)

    # Building

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; an error gives the folder of the run free again."""
        try:
            self._build()
        except BaseException:
            self._leave_run()
            raise

    def _build(self) -> None:
        resumed = None if self.resume is None else self.spec
        spec = start_from(self.options, self.task, self.config.subcommand, resumed)
        super().instantiate_classes()
        self.model.starts_from = spec
        if spec is not None:
            say(describe_start(spec, self.datamodule, self.options.model, self.resume))
            match_classes(spec, self.datamodule, fresh=self.subcommand == "fit" and resumed is None)
        if self.resume is not None:
            self.model.resumed = True
            if self.place is not None:
                # Lightning also does this; with models that are divided, only once the loader is there.
                self.datamodule.load_state_dict(self.place)

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
            "precision": given.precision or default_precision(given.accelerator),
        }
        if self.subcommand == "fit" and not given.fast_dev_run:
            callbacks += self._prepare_run(settings)
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

    def _prepare_run(self, settings: dict[str, Any]) -> list[Callback]:
        check_logger(self.options.logger)
        step = None if self.run is None else self.resume_step
        self.run = self.run or new_run(self.options.runs, self.run_name)
        self.claim = self.run.claim() if is_rank_zero() else None
        self.save_config_kwargs["config_filename"] = self.run.unused("config.yaml")
        theirs = self._get(self.config_init, "trainer").logger
        more = [] if theirs is True else listed(theirs)
        keep = self.options.trainer.enable_checkpointing is not False
        settings |= {
            "logger": False if theirs is False else [*create_loggers(self.run, self.options.logger, step), *more],
            "enable_checkpointing": keep,
            "default_root_dir": str(self.run.path),
        }
        self.best = BestCheckpoint(self.run.checkpoints, mode=self.task.mode)
        self.stopwatch = Stopwatch()
        self.last = LastCheckpoint(self.run.checkpoints, self.options.save_every_n_steps)
        averaging = [EMAWeightAveraging(decay=self.options.ema)] if self.options.ema is not None else []
        images = [kind(self.run.path) for kind in (LearningCurve, KernelSheet, ExampleSheet)]
        return [*averaging, *images, self.stopwatch, *([self.best, self.last] if keep else [])]

    # Running

    # Private: LightningCLI has no public method around a command, whose errors and end are handled here.
    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; however it ends, name the unreadable images."""
        try:
            super()._run_subcommand(subcommand)
        except MisconfigurationException as error:
            raise ValueError(str(error)) from error
        except (SystemExit, KeyboardInterrupt) as error:
            self._tell_how_to_resume()
            if is_rank_zero() or not isinstance(error, SIGTERMException):
                raise
            # All were stopped in good order. Of processes that it launched, Lightning would take another status for
            # a crash, and kill the first one before it has told.
        finally:
            self._tell_broken()
            self._leave_run()

    def _leave_run(self) -> None:
        if self.run is not None and self.subcommand == "fit" and is_rank_zero():
            self.run.discard_if_empty()
        if self.claim is not None:
            self.claim.close()

    def _tell_how_to_resume(self) -> None:
        if self.run is None or self.subcommand != "fit":
            return
        if (checkpoint := self.run.newest_checkpoint()) is None:
            say("stopped before the first checkpoint")
            return
        where = f"epoch {self.trainer.current_epoch + 1}, step {self.trainer.global_step}"
        say(f"stopped in {where}; to resume:\n  {resume_command(self.prog, self.argv, checkpoint)}")

    def _tell_broken(self) -> None:
        for split in ("train", "validation", "test", "predict"):
            if broken := self.datamodule.broken(split):
                instead = "replaced" if split == "train" else "left out"
                say(f"{counted(len(broken), f'unreadable {split} image')} {instead}; first {broken[0]}")

    def after_fit(self) -> None:
        """Print score, checkpoint and next command."""
        if self.run is None:
            return
        minutes, seconds = divmod(round(time.monotonic() - self.began), 60)
        done = f"{counted(self.trainer.current_epoch, 'epoch')}, {counted(self.trainer.global_step, 'step')}"
        done += f" in {minutes} min {seconds} s"
        if is_rank_zero() and self.trainer.global_step:
            run = {"seed": self.options.get("seed_everything"), "command": shell_command(self.prog, self.argv)}
            write_json(summarize(self.trainer, self.best, self.stopwatch, **run), self.run.path / "summary.json")
        kept = self.best.best_model_path or self.last.last_model_path or (self.resume and str(self.resume))
        if not kept:
            say(done)
            return
        checkpoint, here, score = Path(kept), Path.cwd(), self.best.best_model_score
        checkpoint = checkpoint.relative_to(here) if checkpoint.is_relative_to(here) else checkpoint
        best = "no validation" if score is None else f"best val {self.model.describe_score(float(score))}"
        say(f"{best}, {done}\ncheckpoint: {checkpoint}")
        say(next_command(self.prog, self.model, self.datamodule, checkpoint))

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
    """Run one command of a training, as ``visionattn.cli.errors.run`` expects."""
    with training_settings():
        TrainingCLI(argv, prog)
