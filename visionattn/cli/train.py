"""The commands of train.py: LightningCLI with run folders, resuming, and errors of one line."""

import json
import logging
import math
import re
import shlex
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import visionattn  # noqa: F401  registers the models
from visionattn.checks import check_range
from visionattn.cli.errors import DEBUG_HINT, ConciseParser, UsageError, describe, one_line
from visionattn.cli.kinds import find_task
from visionattn.cli.progress import LightningProgress
from visionattn.cli.report import check_writable, write_json
from visionattn.cli.trainer_options import (
    check_callbacks,
    check_plugins,
    check_trainer_options,
    create_profiler,
    default_precision,
    describe_commands,
    listed,
)
from visionattn.data.module import MAX_SEED
from visionattn.tasks import TASKS
from visionattn.tasks.start import adopt_model, describe_start, match_classes, start_from
from visionattn.training import require_own_model, stored_spec
from visionattn.training.callbacks import (
    EpochReport,
    ExampleSheet,
    KernelSheet,
    LearningCurve,
    Stopwatch,
)
from visionattn.training.checkpoints.callbacks import (
    BEST,
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    read_training,
)
from visionattn.training.checkpoints.files import is_sharded
from visionattn.training.loggers import LoggerName, check_logger, create_loggers
from visionattn.training.predictions import PredictionWriter, check_predictions
from visionattn.training.runs import RunFolder, SameCheckpoint, is_rank_zero, new_run, newest_run, run_of
from visionattn.words import counted
from visionattn_kernels.provenance import provenance

NOISE = (
    # Lightning's hints, each of which is dealt with here or is the user's choice.
    r".*does not have many workers.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*WeightAveraging callback.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*is smaller than the logging interval.*",
    r".*your dataloader is not resumable.*",
    r".*Precision .* is not supported by the model summary.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*GPU available but not used.*",
    r".*callbacks used to create the checkpoint need to be provided.*",
    r".*`IterableDataset` has `__len__` defined.*",
)


DESCRIPTION = (
    "Trains and applies image classifiers and models for re-identification, pretrains encoders, and finds objects: "
    f"which, says --task ({', '.join(TASKS)}) after the command, or task: in a config file."
)


@dataclass(frozen=True)
class RunOptions:
    """Files of a training run.

    Args:
        runs: folder of all runs; each gets runs/NAME/NUMBER.
        run_name: NAME, by default that of the config file, or of the model.
        logger: where metrics go beside metrics.csv.
        ema: keep an exponential moving average of the weights with this decay, e.g. 0.9999; it is what is validated
            and saved as the best. By default, none is kept.
        save_every_n_steps: save last.ckpt in the middle of epochs, too; 0 for not.
    """

    runs: Path = Path("runs")
    run_name: str | None = None
    logger: LoggerName = "csv"
    ema: float | None = None
    save_every_n_steps: int = 1000


class TrainingParser(ConciseParser, LightningArgumentParser):
    """Errors of one line, and no guessing at abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)


class TrainingCLI(LightningCLI):
    """LightningCLI over the task that the command line names, and its data.

    Args:
        argv: the command line.
        prog: what stands before it: ``train.py``, or ``visionattn train``.
    """

    def __init__(self, argv: list[str], prog: str = "train.py") -> None:
        self.argv, self.prog = argv, prog
        self.task = TASKS[find_task(argv)]
        self.resume: Path | None = None
        self.run: RunFolder | None = None  # that the training goes on in, or once it begins, the new one
        self.claim: IO[str] | None = None  # of its folder
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
        """Lightning's, without options that make no sense from a shell."""
        skipped = {"model", "datamodule", "weights_only"}
        return {
            "fit": skipped | {"train_dataloaders", "val_dataloaders"},
            "validate": skipped | {"dataloaders"},
            "test": skipped | {"dataloaders"},
            "predict": skipped | {"dataloaders", "return_predictions"},
        }

    def setup_parser(self, *args: Any) -> None:
        """Describe the commands, too."""
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
            help="file for predict, .csv or .json; by default a new predictions.csv.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses without Lightning's warning about arguments that do not come from sys.argv."""
        try:
            self.config = parser.parse_args(args)
        except UsageError as error:
            if not re.match(r"unknown (option|key) (--)?(model|data)\b", str(error)):
                raise
            others = ", ".join(name for name in TASKS if name != self.task.kind)
            raise UsageError(f"{error} (options of --task {self.task.kind}; there are also {others})") from error
        self._check_options()

    def _check_options(self) -> None:
        """What nobody else looks at before the work begins."""
        options = self.options
        check_trainer_options(options.trainer)
        for option, number, low, high in (
            ("seed_everything", options.get("seed_everything"), 0, MAX_SEED),
            ("ema", options.ema, 0, 1),
            ("save_every_n_steps", options.save_every_n_steps, 0, math.inf),
            ("trainer.accumulate_grad_batches", options.trainer.accumulate_grad_batches, 1, math.inf),
            ("trainer.check_val_every_n_epoch", options.trainer.check_val_every_n_epoch, 1, math.inf),
            ("trainer.gradient_clip_val", options.trainer.gradient_clip_val, 0, math.inf),
        ):
            check_range(option, number, low, high, error=UsageError)
        if options.trainer.fast_dev_run and options.ckpt_path and self.config.subcommand == "fit":
            raise UsageError("--trainer.fast_dev_run tries a run from its start: leave out --ckpt_path")
        interval = options.trainer.val_check_interval
        if isinstance(interval, int | float):  # it may also be a time
            check_range("trainer.val_check_interval", interval, 0, above=True, error=UsageError)
        if options.output and self.config.subcommand != "predict":
            where = f"--runs says where {self.config.subcommand} writes"
            raise UsageError(f"--output {options.output} is for predict: {where}")
        check_writable(options.output)
        check_predictions(options.output)
        name = Path(options.run_name or "")
        if name.is_absolute() or ".." in name.parts:
            raise UsageError(f"--run_name {name} leads out of --runs: it is a name, or some with / between them")

    @property
    def options(self) -> Any:
        """Options of the chosen command."""
        return self.config[self.config.subcommand]

    @property
    def run_name(self) -> str:
        """What the folder of the runs is called."""
        if self.options.run_name:
            return str(self.options.run_name)
        configs = [Path(str(config)) for config in self.options.get("config") or []]
        if not configs:
            return str(self.options.model.name).replace("/", "-").replace(":", "-")
        parts = configs[-1].with_suffix("").parts
        return "-".join(parts[parts.index("configs") + 1 :] if "configs" in parts else parts[-1:])

    def _parse_ckpt_path(self) -> None:
        """Finds the checkpoint that is asked for. Lightning would let its options override the command line's."""
        wanted, command = self.options.ckpt_path, self.config.subcommand
        if wanted is None:
            return
        if wanted in ("last", "best"):
            run, place = newest_run(self.options.runs, self.run_name), self.options.runs / self.run_name
            found = None if run is None else run.newest_checkpoint() if wanted == "last" else run.checkpoints / BEST
            if found is not None and (found.is_file() or is_sharded(found)):
                self.resume, self.run = found, run if wanted == "last" else None
            elif command == "fit" and wanted == "last":
                say(f"no checkpoint under {place} to go on from: training starts anew")
            else:
                raise UsageError(f"no {wanted} checkpoint under {place}: pass --ckpt_path FILE or --run_name NAME")
        elif Path(wanted).is_file() or is_sharded(Path(wanted)):
            self.resume, self.run = Path(wanted), run_of(Path(wanted))
        else:
            raise UsageError(f"no checkpoint at {wanted} (--ckpt_path takes a file, last or best)")
        self.options.ckpt_path = None if self.resume is None else str(self.resume)
        if self.resume is None:
            return
        checkpoint = read_training(self.resume, shards=True)
        self.resume_step = int(checkpoint.get("global_step", 0))
        spec = stored_spec(checkpoint, self.resume)
        if spec is None:
            raise ValueError(f"{self.resume} is not a checkpoint of train.py: --model.checkpoint_path starts from it")
        self.spec, self.place = spec, checkpoint.get(self.task.data_class.__qualname__)
        if self.spec.task != self.task.kind:
            raise UsageError(f"{self.resume} was trained with --task {self.spec.task}: pass that, too")
        if command != "fit":
            if self.options.model.get("name") != spec.model:
                require_own_model(spec, self.resume, "--model.name")
            adopt_model(self.options, spec)

    # Building

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer."""
        resumed = None if self.resume is None else self.spec
        spec = start_from(self.options, self.task, self.config.subcommand, resumed)
        super().instantiate_classes()
        if spec is not None:
            say(describe_start(spec, self.datamodule, self.options.model, self.resume))
            match_classes(spec, self.datamodule, fresh=self.subcommand == "fit" and resumed is None)
        if self.resume is not None:
            self.model.resumed = True
            if self.place is not None:
                # Lightning tells it, too; with models that are divided, only once the loader is there.
                self.datamodule.load_state_dict(self.place)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what every run has: progress, checkpoints that are whole, loggers, averaging."""
        given, built = self.options.trainer, self._get(self.config_init, "trainer")
        callbacks, plugins = listed(built.callbacks), listed(built.plugins)
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
            self.predictions = PredictionWriter(
                self.options.output or Path(RunFolder(Path()).unused("predictions.csv"))
            )
            callbacks.append(self.predictions)
        if self.subcommand != "fit":
            self.save_config_callback = None
        if self.subcommand == "fit":
            callbacks.append(EpochReport(per_epoch=not interactive))
        settings["profiler"] = create_profiler(built.profiler, Path(settings.get("default_root_dir", "")))
        try:
            return super().instantiate_trainer(**settings, callbacks=callbacks, **kwargs)
        except (MisconfigurationException, TypeError, ValueError) as error:
            self._leave_run()
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
        self.best = BestCheckpoint(self.run.checkpoints, self.task.monitor, self.task.mode)
        self.stopwatch = Stopwatch()
        self.last = LastCheckpoint(self.run.checkpoints, self.options.save_every_n_steps)
        averaging = [EMAWeightAveraging(decay=self.options.ema)] if self.options.ema is not None else []
        images = [kind(self.run.path) for kind in (LearningCurve, KernelSheet, ExampleSheet)]
        return [*averaging, *images, self.stopwatch, *([self.best, self.last] if keep else [])]

    # Running

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the command; however it ends, what is broken in the data is told."""
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
        command = shlex.join([*shell_words(self.prog), *without_option(self.argv, "--ckpt_path")])
        say(f"stopped in {where}; to go on:\n  {command} --ckpt_path {shlex.quote(str(checkpoint))}")

    def _tell_broken(self) -> None:
        for split in ("train", "validation", "test", "predict"):
            if broken := self.datamodule.broken(split):
                instead = "replaced" if split == "train" else "left out"
                say(f"{counted(len(broken), f'unreadable {split} image')} {instead}; first {broken[0]}")

    def after_fit(self) -> None:
        """One short summary."""
        if self.run is None:
            return
        minutes, seconds = divmod(round(time.monotonic() - self.began), 60)
        done = f"{counted(self.trainer.current_epoch, 'epoch')}, {counted(self.trainer.global_step, 'step')}"
        done += f" in {minutes} min {seconds} s"
        score = self.best.best_model_score
        if is_rank_zero() and self.trainer.global_step:
            write_json(self._summary(None if score is None else float(score)), self.run.path / "summary.json")
        kept = self.best.best_model_path or self.last.last_model_path or (self.resume and str(self.resume))
        if not kept:
            say(done)
            return
        checkpoint = relative(Path(kept))
        best = "no validation" if score is None else f"best val {self.task.describe_score(float(score))}"
        say(f"{best}, {done}\ncheckpoint: {checkpoint}\n{self._next_step(checkpoint)}")

    def _summary(self, score: float | None) -> dict[str, Any]:
        """What is to be known of a training that has ended."""
        model: Any = self.model
        return {
            "model": model.spec.model,
            "task": self.task.kind,
            "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
            "data": self.datamodule.describe(),
            "epochs": self.trainer.current_epoch,
            "steps": self.trainer.global_step,
            "best": {self.task.monitor: score},
            "train_seconds": round(self.stopwatch.seconds, 1),
            "precision": str(self.trainer.precision),
            "seed": self.options.get("seed_everything"),
            **provenance(self.trainer.strategy.root_device),
            "command": shlex.join([*shell_words(self.prog), *self.argv]),
        }

    def _next_step(self, checkpoint: Path) -> str:
        """The command that comes next: it evaluates, or fine-tunes what was pretrained."""
        data = self.datamodule
        options = {"data.name": data.name, "data.root": data.root}
        if self.task.eval_command:
            program = self.prog.replace("train", "eval")
            what, words = (
                "evaluate:  ",
                [*shell_words(program), self.task.eval_command, "--checkpoint", str(checkpoint)],
            )
            options |= {"data.split": data.splits["validation"]}
            class_map = getattr(data, "class_map", {})
            options |= {"data.class_map": json.dumps(class_map, ensure_ascii=False) if class_map else None}
        else:
            spec = self.model.spec
            what, words = "fine-tune: ", [*shell_words(self.prog), "fit", "--model.name", spec.model]
            options |= {"data.img_size": data.preprocessing["input_size"][1], "model.checkpoint_path": checkpoint}
            options |= {"model.model_kwargs": json.dumps(spec.model_kwargs) if spec.model_kwargs else None}
        given = [word for key, value in options.items() if value for word in (f"--{key}", str(value))]
        return what + shlex.join([*words, *given])

    def after_predict(self) -> None:
        """Where the predictions are."""
        say(f"{counted(self.predictions.count, 'prediction')} in {self.predictions.path}")


def shell_words(prog: str) -> list[str]:
    """What a shell is told to run ``prog``, a script of the repository or an installed command."""
    return ["python", prog] if prog.endswith(".py") else prog.split()


def without_option(argv: list[str], option: str) -> list[str]:
    """The command line without ``option VALUE`` and ``option=VALUE``."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == option:
            next(words, None)
        elif not word.startswith(option + "="):
            kept.append(word)
    return kept


def relative(path: Path) -> Path:
    """``path`` as it is seen from here, where it is below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@rank_zero_only
def say(line: str) -> None:
    """Prints a line, once for all ranks."""
    print(line, flush=True)


def main(argv: list[str], prog: str = "train.py") -> None:
    """Runs one command, as ``visionattn.cli.errors.run`` wants it."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    with warnings.catch_warnings():
        for message in NOISE:
            warnings.filterwarnings("ignore", message)
        TrainingCLI(argv, prog)
