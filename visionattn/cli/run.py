"""One training in its folder: lock, callbacks, loggers, and the lines at its end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from visionattn.cli.next_steps import next_command, resume_command, shell_command
from visionattn.output import write_json
from visionattn.tasks import TrainingTask
from visionattn.training.averaging import MovingAverage
from visionattn.training.callbacks import ExampleSheet, KernelSheet, LearningCurve, RateSheet, SplitTable, Stopwatch
from visionattn.training.checkpoints.callbacks import BEST, BestCheckpoint, LastCheckpoint
from visionattn.training.loggers import create_loggers
from visionattn.training.rate_finder import RateSearch
from visionattn.training.runs import RunFolder, is_rank_zero, say
from visionattn.training.stopping import EarlyStop
from visionattn.training.summary import summarize
from visionattn.words import counted


class TrainingRun:
    """One training in its folder, which is locked until `leave`.

    Args:
        folder: folder of the run.
        options: options of the command.
        task: class of the training.
        resume_step: updates of the weights that an earlier part of the run has done; None at the start of a run.
        search: search that found the learning rate, if there was one.

    Raises:
        ValueError: another process trains there, or nothing can be written there.
    """

    def __init__(
        self,
        folder: RunFolder,
        options: Any,
        task: type[TrainingTask],
        resume_step: int | None = None,
        search: RateSearch | None = None,
    ) -> None:
        self.folder, self.options, self.task, self.resume_step, self.search = folder, options, task, resume_step, search
        self.claim = folder.claim() if is_rank_zero() else None
        self.stopwatch = Stopwatch()
        self.best = BestCheckpoint(folder.checkpoints, mode=task.mode, top_k=options.save_top_k)
        self.last = LastCheckpoint(folder.checkpoints, options.save_every_n_steps)

    def callbacks(self, checkpoints: bool) -> list[Callback]:
        """Return the callbacks of the run, with or without ``checkpoints``."""
        options, path = self.options, self.folder.path
        found: list[Callback] = [] if options.ema is None else [MovingAverage(decay=options.ema)]
        if options.early_stopping is not None:
            found.append(EarlyStop(self.task.mode, options.early_stopping, options.early_stopping_min_delta))
        found += [kind(path) for kind in (SplitTable, LearningCurve, KernelSheet, ExampleSheet)]
        found += [RateSheet(path, self.search)] if self.search else []
        return [*found, self.stopwatch, *([self.best, self.last] if checkpoints else [])]

    def loggers(self, others: Sequence[Logger]) -> list[Logger]:
        """Return the loggers of the run, and others."""
        return [*create_loggers(self.folder, self.options.logger, self.resume_step), *others]

    def leave(self) -> None:
        """Give the folder free; remove it if nothing was done."""
        if is_rank_zero():
            self.folder.discard_if_empty()
        if self.claim is not None:
            self.claim.close()

    def say_how_to_resume(self, trainer: Trainer, prog: str, argv: Sequence[str]) -> None:
        """Print the command that resumes a training that was stopped."""
        if (checkpoint := self.folder.newest_checkpoint()) is None:
            say("stopped before the first checkpoint")
            return
        where = f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}"
        say(f"stopped in {where}; to resume:\n  {resume_command(prog, argv, checkpoint)}")

    def write_summary(self, trainer: Trainer, prog: str, argv: Sequence[str]) -> None:
        """Write ``summary.json`` of a training that has ended."""
        if is_rank_zero() and trainer.global_step:
            run = {"seed": self.options.get("seed_everything"), "command": shell_command(prog, argv)}
            write_json(summarize(trainer, self.best, self.stopwatch, **run), self.folder.path / "summary.json")

    def say_outcome(self, trainer: Trainer, prog: str, seconds: float, resumed: Path | None) -> None:
        """Print score, checkpoint and next command; ``resumed`` is the checkpoint that the training began with."""
        minutes, seconds = divmod(round(seconds), 60)
        done = f"{counted(trainer.current_epoch, 'epoch')}, {counted(trainer.global_step, 'step')}"
        done += f" in {minutes} min {seconds} s"
        best = self.folder.checkpoints / BEST if self.best.best_model_path else None
        checkpoint = best or Path(self.last.last_model_path or resumed or "")
        if not checkpoint.name:
            say(done)
            return
        score, here, trained = self.best.best_model_score, Path.cwd(), cast(TrainingTask, trainer.lightning_module)
        checkpoint = checkpoint.relative_to(here) if checkpoint.is_relative_to(here) else checkpoint
        reached = "no validation" if score is None else f"best val {trained.describe_score(float(score))}"
        say(f"{reached}, {done}\ncheckpoint: {checkpoint}")
        say(next_command(prog, trained, trainer.datamodule, checkpoint))  # type: ignore[attr-defined]
