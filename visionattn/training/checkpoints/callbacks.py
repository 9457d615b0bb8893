"""When checkpoints are written, and how: a file with a checkpoint's name is always a whole one."""

import contextlib
import os
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

from visionattn.training.checkpoints.files import METADATA, is_sharded, read_checkpoint

BEST, LAST = "best.ckpt", "last.ckpt"


def read_training(path: Path, shards: bool = False) -> dict[str, Any]:
    """What a checkpoint of ``train.py`` holds, on the CPU.

    Args:
        path: the file.
        shards: of a sharded one, give all but weights and the optimizer's state.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, a damaged one, or a sharded one where that is not wanted.
    """
    if shards and is_sharded(path):
        return read_checkpoint(path / METADATA, mmap=False)
    checkpoint = read_checkpoint(path, mmap=False)  # the optimizer would go on in the mapped file
    if not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
        raise ValueError(f"{path} is not a checkpoint of train.py: start from it with --model.checkpoint_path")
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old file and renames; reads without running code from the file.

    Lightning's own writes to the system's temporary folder first, from where, on another disk, the file is copied and
    may be cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replaces ``path`` in one step, once all is on the disk.

        Raises:
            OSError: it cannot be written; what was there before stays.
        """
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            # Where a write fails, torch complains of the place in the file that it has come to.
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
            remedy = (
                "the one before it is whole: make room and go on with --ckpt_path last"
                if path.is_file()
                else "make room, or keep runs elsewhere with --runs FOLDER"
            )
            raise OSError(f"cannot write checkpoint {path}: {reason}; {remedy}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Reads a checkpoint onto the CPU.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a checkpoint, a damaged one, or a sharded one.
        """
        return read_training(Path(path))


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``, the weights with the best validation so far.

    Args:
        dirpath: folder of checkpoints.
        monitor: the figure that they are the best by.
        mode: whether its largest (``max``) or its smallest value is the best.
    """

    def __init__(self, dirpath: Path, monitor: str = "val_top1", mode: Literal["max", "min"] = "max") -> None:
        super().__init__(
            dirpath,
            Path(BEST).stem,
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What is best is what this folder has: it may have been moved, or the run go on in a new one."""
        path = os.path.join(str(self.dirpath), BEST)  # noqa: PTH118  Lightning compares strings
        score = state_dict["best_model_score"]
        if score is None or not Path(path).exists():
            return
        moved = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
        super().load_state_dict({**state_dict, **moved, "best_k_models": {path: score}})


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which a run goes on: after each validation, each epoch, every N steps and upon SIGTERM.

    Args:
        dirpath: folder of checkpoints.
        every_n_steps: save in the middle of epochs, too; 0 for not.

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
        """Takes the first process's folder: only that one knows which number it claimed."""
        self.path = trainer.strategy.broadcast(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Whether the epoch's validation was interrupted."""
        return {"validation_due": self.validation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up."""
        self.validation_due = state_dict["validation_due"]

    def _save(self, trainer: Trainer) -> None:
        if trainer.sanity_checking or trainer.global_step in (0, self.saved_step):
            return
        trainer.save_checkpoint(self.path)
        self.last_model_path, self.saved_step = str(self.path), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Saves every N updates. The end of an epoch is left to the hooks below, which see it complete."""
        self._agree_to_stop(trainer)
        due = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        if due and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Lets a run of several processes be stopped in its validation, too."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._agree_to_stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what was just validated."""
        if trainer.state.fn == "fit":
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves epochs without validation."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """SIGTERM reaches us between two batches, where all is consistent; nothing else does."""
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != "fit":
            return
        if trainer.validating:
            # The averaged weights stand where the trained ones belong; and on resuming, Lightning would take the
            # validation for done.
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            for callback in callbacks:
                if isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)
            self.validation_due = True
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        if not progress.is_last_batch:
            # Gradients that wait for their update are not saved: the batches that they come from are done again.
            pending = progress.current.processed % trainer.accumulate_grad_batches
            for counts in (progress.current, progress.total):
                for name in ("ready", "started", "processed", "completed"):
                    setattr(counts, name, getattr(counts, name) - pending)
        self._save(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes up for a validation that was interrupted, before the next epoch begins."""
        self._listen(trainer)
        self.saved_step = trainer.global_step
        loop = trainer.fit_loop
        epochs: Any = loop.epoch_progress
        if trainer.max_steps != -1 and 0 < epochs.current.ready == epochs.current.processed:
            # Where a run is as long as so many steps, Lightning takes a complete epoch for one to be taken up again.
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
            # The epoch's own loop is yet to find out that it is complete, and leaves its restart mode on the way.
            validation._has_run = False
            trainer.training = True

    # Signals

    def _listen(self, trainer: Trainer) -> None:
        """Takes SIGTERM, and on SLURM the signal of a time limit that is near, for the wish to stop after this batch.

        Of several processes, each of which may be elsewhere when it is told, Lightning's handlers would talk to the
        others at once, in the middle of whatever they exchange, and save a state that is halfway through a step.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        environment: Any = trainer._accelerator_connector.cluster_environment
        slurm = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        if trainer.world_size > 1 or slurm:
            for number in [signal.SIGTERM, *([environment.requeue_signal] if slurm else [])]:
                signal.signal(number, lambda *_: setattr(self, "stop_wanted", True))

    def _agree_to_stop(self, trainer: Trainer) -> None:
        """Stops all processes at the same batch, whichever of them was told to."""
        if trainer.strategy.reduce_boolean_decision(self.stop_wanted, all=False):
            trainer._signal_connector.received_sigterm = True
