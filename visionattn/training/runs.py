"""Folders of training runs: ``runs/NAME/NUMBER/``, a new number for each run."""

import errno
import os
import shutil
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from visionattn.errors import UsageError
from visionattn.output import check_folder
from visionattn.training.checkpoints.callbacks import BEST, LAST
from visionattn.training.checkpoints.files import is_sharded, is_whole

LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """Files of one run: ``config.yaml``, ``metrics.csv``, ``curve.png``, ``checkpoints/{best,last}.ckpt``.

    A training that has ended leaves ``summary.json``: score, duration, hardware; with hyper-kernels also
    ``kernels.png``.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def newest_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint; warn of newer ones that are damaged."""
        files = [path for path in (self.checkpoints / LAST, self.checkpoints / BEST) if path.exists()]
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            if is_whole(path) or is_sharded(path):
                return path
            warnings.warn(f"{path} is damaged, it is passed over", stacklevel=2)
        return None

    def newest_config(self) -> Path | None:
        """Return the config with which the run was last started or resumed."""
        return max(self.path.glob("config*.yaml"), key=lambda path: path.stat().st_mtime_ns, default=None)

    def unused(self, name: str) -> str:
        """Return ``name``, with a number added if the run already has such a file."""
        path, number = Path(name), 1
        while (self.path / path).exists():
            path = Path(name).with_stem(f"{Path(name).stem}-{number}")
            number += 1
        return path.name

    def discard_if_empty(self) -> None:
        """Remove the folder of a run that failed before it did anything."""
        if self.path.is_dir() and {path.name for path in self.path.iterdir()} <= {"config.yaml", "split.csv", LOCK}:
            shutil.rmtree(self.path)

    def claim(self) -> IO[str] | None:
        """Lock the folder, so that no other process trains in it; return None on systems without locks.

        The lock ends when it is closed or the process ends.

        Raises:
            ValueError: another process has the lock, or nothing can be written there.
        """
        check_folder(self.path)
        try:
            import fcntl
        except ImportError:  # Windows
            return None
        # If this process opened and closed the file a second time, the lock would end.
        lock = (self.path / LOCK).open("a+")
        try:
            # The lock belongs to the process: data-loader workers that outlive it do not keep it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read(200).strip()
            lock.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                warnings.warn(
                    f"{self.path} cannot be locked ({error.strerror}): train there with one process only", stacklevel=2
                )
                return None
            raise ValueError(
                f"{self.path} is being trained by {holder or 'another process'}: wait for its end, stop it, or leave "
                "out --ckpt_path to begin another run"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        return lock


class SameCheckpoint(Callback):
    """Check that all processes resume from the same checkpoint, since each of them looked for it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to start if the first process found another checkpoint."""
        first = trainer.strategy.broadcast(self.path)
        if self.path != first:
            raise UsageError(
                f"process {trainer.global_rank} resumes from {self.path or 'nothing'}, the first one from "
                f"{first or 'nothing'}: --runs must be a folder that all nodes share"
            )


def new_run(root: Path, name: str) -> RunFolder:
    """Claim the next number; existing runs are never overwritten.

    Raises:
        ValueError: nothing can be written there.
    """
    folder = root / name
    if is_rank_zero():
        check_folder(folder)
    number = max(_numbers(folder), default=-1) + 1
    while is_rank_zero():
        try:
            (folder / str(number)).mkdir(parents=True)
            break
        except FileExistsError:  # another run was faster
            number += 1
    return RunFolder(folder / str(number))


def name_run(options: Any) -> str:
    """Return ``--run_name``, by default the name of the last config or of the model."""
    if options.run_name:
        return str(options.run_name)
    configs = [Path(str(config)) for config in options.get("config") or []]
    if not configs:
        return str(options.model.name).replace("/", "-").replace(":", "-")
    parts = configs[-1].with_suffix("").parts
    return "-".join(parts[parts.index("configs") + 1 :] if "configs" in parts else parts[-1:])


def find_checkpoint(wanted: str, root: Path, name: str) -> tuple[Path | None, RunFolder | None]:
    """Find the checkpoint that ``--ckpt_path`` names: a file, or ``last`` or ``best`` of the newest run of a name.

    Returns:
        The checkpoint, None if ``last`` or ``best`` does not exist yet; and the run that it resumes, if it does.

    Raises:
        UsageError: no such file.
    """
    if wanted not in ("last", "best"):
        path = Path(wanted)
        if not (path.is_file() or is_sharded(path)):
            raise UsageError(f"no checkpoint at {wanted} (--ckpt_path takes a file, last or best)")
        is_last = path.name == LAST and path.parent.name == "checkpoints"
        return path, RunFolder(path.parents[1]) if is_last else None
    if not (numbers := _numbers(root / name)):
        return None, None
    run = RunFolder(root / name / str(max(numbers)))
    found = run.newest_checkpoint() if wanted == "last" else run.checkpoints / BEST
    if found is None or not (found.is_file() or is_sharded(found)):
        return None, None
    return found, run if wanted == "last" else None


def is_rank_zero() -> bool:
    """Return whether this process writes files; Lightning knows before the processes have met."""
    return getattr(rank_zero_only, "rank", 0) == 0


@rank_zero_only
def say(line: str) -> None:
    """Print a line, once for all ranks."""
    print(line, flush=True)


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
