"""Reports of a run: a line per epoch, learning curves, images of kernels and of examples."""

import filecmp
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich import print as rich_print

from visionattn.errors import UserError
from visionattn.training.checkpoints.callbacks import BestCheckpoint
from visionattn.training.examples import Examples
from visionattn.training.rate_finder import RateSearch
from visionattn.training.runs import say
from visionattn.viz.contact_sheet import save_contact_sheet
from visionattn.viz.curves import save_learning_curve

CURVE_EVERY = 30.0  # seconds; drawing takes a noticeable part of one


class EpochReport(Callback):
    """Print a line at the start of the training and, if ``per_epoch``, one per epoch."""

    def __init__(self, per_epoch: bool) -> None:
        self.per_epoch = per_epoch
        self.began = 0.0
        self.kept = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print model, data and hardware."""
        self.began = time.monotonic()  # on_train_epoch_start is not called for an epoch that is resumed
        model: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        parameters = list(model.model.parameters())
        total, trained = (
            sum(parameter.numel() for parameter in parameters if parameter.requires_grad or everything)
            for everything in (True, False)
        )
        share = "" if total == trained else f" ({trained / 1e6:.2f} M trained)" if trained else " (frozen)"
        say(
            f"{model.spec.model}, {total / 1e6:.2f} M parameters{share}, on {data.describe()}; "
            f"{trainer.precision} on {trainer.world_size} × {trainer.strategy.root_device.type}; "
            f"files in {trainer.default_root_dir}",
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.began = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of the epoch, and how many decoded images are kept if more were."""
        if self.per_epoch:
            metrics = trainer.callback_metrics
            parts = sorted(key for key in metrics if key.startswith("train_loss_"))
            task: Any = pl_module
            keys = ("train_loss", *parts, *task.shown)
            figures = [f"{key} {metrics[key]:.4f}" for key in keys if key in metrics]
            seconds = time.monotonic() - self.began
            number = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            say(", ".join([number, f"step {trainer.global_step}", *figures, f"{seconds:.0f} s"]))
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data.image_cache is not None and (kept := data.image_cache.describe()) != self.kept:
            say(kept)
            self.kept = kept


class Stopwatch(Callback):
    """Measure how long a training takes over all resumes; Lightning's Timer would break ``trainer.max_time``."""

    def __init__(self) -> None:
        self._before = 0.0
        self._began: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds from the start of the training until now, or to its end."""
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self._began = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self._before, self._began = self.seconds, None

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds, for checkpoints."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there."""
        self._before = state_dict["seconds"]


class SplitTable(Callback):
    """Write ``split.csv`` if the data were divided here: the images to train on and to validate on."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "split.csv"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table; of a resumed run, compare the data with it.

        Raises:
            UserError: the data are divided in another way since images came or went.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not (trainer.is_global_zero and getattr(data, "divides_itself", False)):
            return
        if not self.path.exists():
            data.write_split(self.path)
            return
        with TemporaryDirectory() as folder:
            data.write_split(now := Path(folder) / "split.csv")
            if not filecmp.cmp(now, self.path, shallow=False):
                raise UserError(
                    f"the images have changed since {self.path} was written, and are no longer divided as it says: "
                    "restore them, or start a new run from the weights with --model.checkpoint_path"
                )


class _Drawing(Callback):
    """Draw an image in the folder of a run, in the first process; errors are printed and do not stop the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _try(self, trainer: Trainer, what: str, draw: Callable[[], object]) -> None:
        if not trainer.is_global_zero:
            return
        try:
            draw()
        except Exception as error:
            rich_print(f"[yellow]no {what}: {error}[/yellow]")


class LearningCurve(_Drawing):
    """Draw ``curve.png`` next to ``metrics.csv``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.drawn = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw at most every 30 seconds."""
        if time.monotonic() - self.drawn > CURVE_EVERY:
            self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the whole run."""
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw the run so far."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        def draw() -> None:
            for logger in trainer.loggers:
                logger.save()
            if (self.folder / "metrics.csv").exists():
                save_learning_curve(self.folder / "metrics.csv", self.folder / "curve.png")

        self._try(trainer, "learning curve", draw)
        self.drawn = time.monotonic()


class KernelSheet(_Drawing):
    """Draw ``kernels.png`` after the training, for models with hyper-kernels."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the kernels of the last weights."""
        if (hyper_kernels := getattr(pl_module.model, "hyper_kernels", None)) is None:
            return

        @torch.no_grad()
        def draw() -> None:
            kernels = {name: kernel.float().cpu() for name, kernel in hyper_kernels().items()}
            save_contact_sheet(kernels, self.folder / "kernels.png")

        self._try(trainer, "image of the kernels", draw)


class RateSheet(_Drawing):
    """Draw ``find_lr.png``, the search that found the learning rate."""

    def __init__(self, folder: Path, search: RateSearch) -> None:
        super().__init__(folder)
        self.search = search

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the losses over the rates."""
        self._try(trainer, "image of the search for the rate", lambda: self.search.save(self.folder / "find_lr.png"))


class ExampleSheet(_Drawing):
    """Draw validation images with the results of the task, for tasks with ``examples``.

    ``TITLE-best.png`` shows the weights in ``best.ckpt``, ``TITLE-last.png`` those that were validated last.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw if the last validation gave the best checkpoint."""
        best = next((each for each in trainer.checkpoint_callbacks if isinstance(each, BestCheckpoint)), None)
        if best is None or best.best_model_score is None:
            return
        if best.best_model_score == trainer.callback_metrics.get(str(best.monitor)):
            self._draw(trainer, pl_module, "best")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last examples."""
        self._draw(trainer, pl_module, "last")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, which: str) -> None:
        task: Any = pl_module
        examples: Examples | None = getattr(task, "examples", None)
        if examples:
            path, used = self.folder / f"{examples.title}-{which}.png", task.data.preprocessing
            self._try(trainer, f"image of the {examples.title}", lambda: examples.save(path, used["mean"], used["std"]))
