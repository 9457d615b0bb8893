"""When and how checkpoints are written. A file with the name of a checkpoint is always complete."""

import shutil
import signal
import threading
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException

from visionattn.io import replacing
from visionattn.training.checkpoints.files import METADATA, is_sharded, read_checkpoint
from visionattn.training.lightning_internals import cluster_environment, leave_restart_mode, request_stop

BEST, LAST = "best.ckpt", "last.ckpt"


def read_training(path: Path, shards: bool = False) -> dict[str, Any]:
    """Read a checkpoint of ``train.py`` onto the CPU; of a sharded one, with ``shards``, all but weights and optimizer.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, a damaged one, or a sharded one without ``shards``.
    """
    if shards and is_sharded(path):
        return read_checkpoint(path / METADATA, mmap=False)
    checkpoint = read_checkpoint(path, mmap=False)  # the optimizer would write to a mapped file
    if not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
        raise ValueError(f"{path} is not a checkpoint of train.py: start from it with --model.checkpoint_path")
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically, and read them without running code from the file.

    Lightning's own class writes to the system's temporary folder first. From there, if it is another disk, the file is
    copied and may be cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replace ``path`` in one step.

        Raises:
            OSError: it cannot be written; the old file stays.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, only_writer=True) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # After a failed write, torch complains of the position in the file.
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
            remedy = (
                "the one before it is whole: make room and resume with --ckpt_path last"
                if path.is_file()
                else "make room, or keep runs elsewhere with --runs FOLDER"
            )
            raise OSError(f"cannot write checkpoint {path}: {reason}; {remedy}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint onto the CPU.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a checkpoint, or a damaged one.
        """
        return read_training(Path(path))


class BestCheckpoint(ModelCheckpoint):
    """Keep ``best.ckpt``, the weights with the best validation so far, and further ones if several are wanted.

    If there are several, each has a file with its step and score, and ``best.ckpt`` is another name of the best file.

    Args:
        dirpath: folder of checkpoints.
        monitor: metric that selects them; a task that has a ``monitor`` replaces it.
        mode: whether the largest (``max``) or the smallest value is the best.
        top_k: number of checkpoints to keep.
    """

    def __init__(
        self, dirpath: Path, monitor: str = "val_top1", mode: Literal["max", "min"] = "max", top_k: int = 1
    ) -> None:
        options: dict[str, Any] = {"save_on_train_epoch_end": False, "enable_version_counter": False}
        super().__init__(
            dirpath,
            Path(BEST).stem,
            monitor=monitor,
            mode=mode,
            save_top_k=top_k,
            auto_insert_metric_name=False,
            **options,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the checkpoint if it is among the best."""
        before = self.best_model_path
        super().on_validation_end(trainer, pl_module)
        if self.save_top_k > 1 and self.best_model_path != before and trainer.is_global_zero:
            give_name(Path(self.best_model_path), self._path(BEST))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask the task for the metric, which may depend on the data."""
        super().setup(trainer, pl_module, stage)
        self.monitor = str(getattr(pl_module, "monitor", self.monitor))
        if self.save_top_k > 1:
            self.filename = f"step{{step}}-{self.monitor}-{{{self.monitor}:.4f}}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state for the files in this folder, which may have been moved or belong to a new run."""
        score, best = state_dict["best_model_score"], self._path(BEST)
        if score is None or not best.exists():
            return
        if self.save_top_k == 1:
            held = {best: score}
        else:
            held = {self._path(Path(name).name): value for name, value in state_dict["best_k_models"].items()}
            if held.pop(best, None) is not None:  # of a run that kept one: the next best would take its name
                first = self._path(f"earlier-{self.monitor}-{float(score):.4f}.ckpt")
                give_name(best, first)
                held[first] = score
        held = {path: value for path, value in held.items() if path.exists()}
        ranked = sorted(held, key=held.__getitem__, reverse=self.mode == "max")[: self.save_top_k]
        if not ranked:
            return
        held = {path: value for path, value in held.items() if path in ranked}  # in order: of equals, the first goes
        worst = (min if self.mode == "max" else max)(held, key=held.__getitem__)
        moved = {
            "dirpath": self.dirpath,
            "best_model_path": str(ranked[0]),
            "kth_best_model_path": str(worst),
            "kth_value": held[worst],
            "best_k_models": {str(path): value for path, value in held.items()},
        }
        super().load_state_dict({**state_dict, **moved})

    def _path(self, name: str) -> Path:
        return Path(str(self.dirpath)) / name


def give_name(path: Path, name: Path) -> None:
    """Give a file a second name in its folder, in one step; on file systems without such links, copy it."""
    with replacing(name, only_writer=True) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            temporary.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, temporary)


class LastCheckpoint(Checkpoint):
    """Keep ``last.ckpt``, to resume from: saved after each validation, each epoch, every N steps and upon SIGTERM.

    Args:
        dirpath: folder of checkpoints.
        every_n_steps: save also in the middle of epochs; 0 for never.

    Attributes:
        last_model_path: the file, once there is one.
    """

    def __init__(self, dirpath: Path, every_n_steps: int = 0) -> None:
        self.path, self.every_n_steps = Path(dirpath) / LAST, every_n_steps
        self.last_model_path = ""
        self.saved_step = -1
        self.validation_due = False
        self.stop_wanted = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the folder of the first process, which alone knows the number that it claimed."""
        self.path = trainer.strategy.broadcast(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return whether the validation of the epoch was interrupted."""
        return {"validation_due": self.validation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.validation_due = state_dict["validation_due"]

    def _save(self, trainer: Trainer) -> None:
        if trainer.sanity_checking or trainer.global_step in (0, self.saved_step):
            return
        trainer.save_checkpoint(self.path)
        self.last_model_path, self.saved_step = str(self.path), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save every N updates. At the end of an epoch the hooks below save, which see it complete."""
        self._agree_to_stop(trainer)
        due = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        if due and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Let a run of several processes be stopped also during validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._agree_to_stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights that were just validated."""
        if trainer.state.fn == "fit":
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch without validation."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save upon SIGTERM, which arrives between two batches in a consistent state; other errors do not."""
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != "fit":
            return
        if trainer.validating:
            # The averaged weights are in the place of the trained ones; and a resumed run would take the validation
            # for done.
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            for callback in callbacks:
                if isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)
            self.validation_due = True
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        if not progress.is_last_batch:
            # Gradients that wait for their update are not saved: a resumed run repeats their batches.
            pending = progress.current.processed % trainer.accumulate_grad_batches
            for counts in (progress.current, progress.total):
                for name in ("ready", "started", "processed", "completed"):
                    setattr(counts, name, getattr(counts, name) - pending)
        self._save(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Repeat a validation that was interrupted, before the next epoch begins."""
        self._listen(trainer)
        self.saved_step = trainer.global_step
        loop = trainer.fit_loop
        epochs: Any = loop.epoch_progress
        if trainer.max_steps != -1 and 0 < epochs.current.ready == epochs.current.processed:
            # If the length of a run is given in steps, Lightning takes a complete epoch for one to resume.
            epochs.current.completed, epochs.total.completed = epochs.current.processed, epochs.total.processed
            loop.reset_restart_stage()
            loop.epoch_loop.restarting = False
        if self.validation_due:
            self.saved_step = -1
            self.validation_due = False
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.restarting = False
            trainer.validating = True
            validation.run()
            leave_restart_mode(validation)
            trainer.training = True

    # Signals

    def _listen(self, trainer: Trainer) -> None:
        """Stop after this batch upon SIGTERM, and on SLURM upon the signal that the time limit is near.

        Lightning's handlers act at once. With several processes they would communicate in the middle of another
        exchange, and save a state that is halfway through a step.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        environment = cluster_environment(trainer)
        signals = [signal.SIGTERM]
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            assert environment.requeue_signal is not None
            signals.append(environment.requeue_signal)
        elif trainer.world_size == 1:  # Lightning's handler will do
            return
        for number in signals:
            signal.signal(number, lambda *_: setattr(self, "stop_wanted", True))

    def _agree_to_stop(self, trainer: Trainer) -> None:
        """Stop all processes at the same batch if one of them received the signal."""
        if trainer.strategy.reduce_boolean_decision(self.stop_wanted, all=False):
            request_stop(trainer)
