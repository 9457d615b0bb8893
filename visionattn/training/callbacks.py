"""What a run tells: a line per epoch, learning curves, images of kernels and of examples."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich import print as rich_print

from visionattn.tasks.examples import Examples
from visionattn.training.checkpoints.callbacks import BestCheckpoint

CURVE_EVERY = 30.0  # seconds; drawing takes a noticeable part of one


class EpochReport(Callback):
    """One line at the start of the training and, where no progress bar shows it, one per epoch.

    Args:
        per_epoch: whether there is no progress bar.
    """

    def __init__(self, per_epoch: bool) -> None:
        self.per_epoch = per_epoch
        self.began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is trained on what."""
        self.began = time.monotonic()  # an epoch that is resumed in its middle does not start
        model: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        parameters = list(model.model.parameters())
        total, trained = (
            sum(parameter.numel() for parameter in parameters if parameter.requires_grad or everything)
            for everything in (True, False)
        )
        share = "" if total == trained else f" ({trained / 1e6:.2f} M trained)" if trained else " (frozen)"
        self._say(
            trainer,
            f"{model.spec.model}, {total / 1e6:.2f} M parameters{share}, on {data.describe()}; "
            f"{trainer.precision} on {trainer.world_size} × {trainer.strategy.root_device.type}; "
            f"files in {trainer.default_root_dir}",
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.began = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The figures of the epoch."""
        if self.per_epoch:
            metrics = trainer.callback_metrics
            parts = sorted(key for key in metrics if key.startswith("train_loss_"))
            task: Any = pl_module
            keys = ("train_loss", *parts, *task.shown)
            figures = [f"{key} {metrics[key]:.4f}" for key in keys if key in metrics]
            seconds = time.monotonic() - self.began
            number = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._say(trainer, ", ".join([number, f"step {trainer.global_step}", *figures, f"{seconds:.0f} s"]))

    @staticmethod
    def _say(trainer: Trainer, line: str) -> None:
        if trainer.is_global_zero:
            print(line, flush=True)


class Stopwatch(Callback):
    """How long a training took, over all resumes; Lightning's Timer would stand in the way of ``trainer.max_time``.

    Attributes:
        seconds: from the start of the training until now, or to its end.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self._began: float | None = None

    @property
    def seconds(self) -> float:  # noqa: D102  above
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts it."""
        self._began = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops it."""
        self._before, self._began = self.seconds, None

    def state_dict(self) -> dict[str, Any]:
        """What it shows, for checkpoints."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self._before = state_dict["seconds"]


class LearningCurve(Callback):
    """Draws ``curve.png`` beside ``metrics.csv``; a failure to do so is told and goes no further.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drawn = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws now and then."""
        if time.monotonic() - self.drawn > CURVE_EVERY:
            self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the whole run."""
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draws what there is."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        try:
            from visionattn.viz.curves import save_learning_curve

            for logger in trainer.loggers:
                logger.save()
            if (self.folder / "metrics.csv").exists():
                save_learning_curve(self.folder / "metrics.csv", self.folder / "curve.png")
        except Exception as error:
            rich_print(f"[yellow]no learning curve: {error}[/yellow]")
        self.drawn = time.monotonic()


class KernelSheet(Callback):
    """Draws ``kernels.png`` at the end of the training, for models with hyper-kernels; a failure goes no further.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the kernels of the weights that the training ends with."""
        hyper_kernels = getattr(pl_module.model, "hyper_kernels", None)
        if hyper_kernels is None or not trainer.is_global_zero:
            return
        try:
            from visionattn.viz.contact_sheet import save_contact_sheet

            with torch.no_grad():
                kernels = {name: kernel.float().cpu() for name, kernel in hyper_kernels().items()}
            save_contact_sheet(kernels, self.folder / "kernels.png")
        except Exception as error:
            rich_print(f"[yellow]no image of the kernels: {error}[/yellow]")


class ExampleSheet(Callback):
    """Draws what a task makes of images of the validation, for tasks that keep ``examples`` of them.

    ``TITLE-best.png`` is of the weights in ``best.ckpt``, ``TITLE-last.png`` of those that were validated last; a
    failure to draw is told and goes no further.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws where the last validation gave the best checkpoint."""
        best = next((each for each in trainer.checkpoint_callbacks if isinstance(each, BestCheckpoint)), None)
        if best is None or best.best_model_score is None:
            return
        if best.best_model_score == trainer.callback_metrics.get(str(best.monitor)):
            self._draw(trainer, pl_module, "best")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the last ones."""
        self._draw(trainer, pl_module, "last")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, which: str) -> None:
        task: Any = pl_module
        examples: Examples | None = getattr(task, "examples", None)
        if examples is None or not trainer.is_global_zero:
            return
        try:
            mean, std = (task.data.preprocessing[key] for key in ("mean", "std"))
            examples.save(self.folder / f"{examples.title}-{which}.png", mean, std)
        except Exception as error:
            rich_print(f"[yellow]no image of the {examples.title}: {error}[/yellow]")
