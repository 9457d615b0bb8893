"""Where a training run keeps its files: ``runs/NAME/NUMBER/``, a new number for each run."""

import csv
import os
import shutil
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from visionattn.cli.errors import UsageError
from visionattn.tasks.checkpointing import BEST, LAST

LoggerName = Literal["csv", "tensorboard", "wandb", "wandb-offline"]


@dataclass(frozen=True)
class RunFolder:
    """Files of one run: ``config.yaml``, ``metrics.csv``, ``curve.png``, ``checkpoints/{best,last}.ckpt``.

    Models with hyper-kernels leave ``kernels.png``, too.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def newest_checkpoint(self) -> Path | None:
        """The newest complete one."""
        files = [path for path in (self.checkpoints / LAST, self.checkpoints / BEST) if path.is_file()]
        # A zip file's table of contents stands at its end: a file that was cut short has none.
        whole = [path for path in files if zipfile.is_zipfile(path)]
        return max(whole, key=lambda path: path.stat().st_mtime_ns, default=None)

    def unused(self, name: str) -> str:
        """``name``, or with a number where the run already has such a file."""
        path, number = Path(name), 1
        while (self.path / path).exists():
            path = Path(name).with_stem(f"{Path(name).stem}-{number}")
            number += 1
        return path.name

    def discard_if_empty(self) -> None:
        """Removes the folder of a run that failed before it did anything."""
        if self.path.is_dir() and {path.name for path in self.path.iterdir()} <= {"config.yaml"}:
            shutil.rmtree(self.path)


def newest_run(root: Path, name: str) -> RunFolder | None:
    """The run with the highest number."""
    numbers = _numbers(root / name)
    return RunFolder(root / name / str(max(numbers))) if numbers else None


def new_run(root: Path, name: str) -> RunFolder:
    """Claims the next number; nothing that is there is ever written to."""
    folder = root / name
    number = max(_numbers(folder), default=-1) + 1
    while is_rank_zero():
        try:
            (folder / str(number)).mkdir(parents=True)
            break
        except FileExistsError:  # another run was faster
            number += 1
    return RunFolder(folder / str(number))


def run_of(checkpoint: Path) -> RunFolder | None:
    """The run that wrote ``checkpoint`` as its last one, and may go on with it."""
    whole = checkpoint.name == LAST and checkpoint.parent.name == "checkpoints"
    return RunFolder(checkpoint.parent.parent) if whole else None


def is_rank_zero() -> bool:
    """Whether this process is the one that writes; Lightning knows before the processes have met."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


class RunCSVLogger(CSVLogger):
    """Lightning's ``metrics.csv``, except that a resumed run adds to it.

    Args:
        run: whose folder it goes to.
        resume_step: rows from this step on are about to be written again; the file as it was is kept aside.
    """

    def __init__(self, run: RunFolder, resume_step: int | None = None) -> None:
        super().__init__(run.path, name="", version="", flush_logs_every_n_steps=50)
        self.run, self.resume_step = run, resume_step

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.run.path)

    def log_hyperparams(self, params: Any = None) -> None:
        """``config.yaml`` has them all."""

    @property
    def experiment(self) -> Any:
        """Lightning's writer, on the file as it should be."""
        if self._experiment is None and is_rank_zero():
            if self.resume_step is not None:
                self._rewind(self.run.path / "metrics.csv", self.resume_step)
            self._experiment = _AppendingWriter(self.log_dir)
        return super().experiment

    def _rewind(self, path: Path, step: int) -> None:
        if not path.is_file():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
        # The last row may have been cut short.
        kept = [
            row for row in rows if (row.get("step") or "").isdigit() and int(row["step"]) < step and None not in row
        ]
        if len(kept) == len(rows):
            return
        shutil.copy2(path, self.run.path / self.run.unused("metrics-interrupted.csv"))
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(kept)
        temporary.replace(path)


class _AppendingWriter(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        if Path(self.metrics_file_path).is_file():
            with Path(self.metrics_file_path).open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def _check_log_dir_exists(self) -> None:
        """Lightning's deletes what it finds."""


def check_logger(name: LoggerName) -> None:
    """Raises UsageError where a logger's package is missing, before a run folder is made for it."""
    if name == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise UsageError("--logger tensorboard needs a package that is not installed: pip install tensorboard")


def create_loggers(run: RunFolder, name: LoggerName, resume_step: int | None) -> list[Logger]:
    """The CSV logger, and the one that was asked for."""
    loggers: list[Logger] = [RunCSVLogger(run, resume_step)]
    if name == "tensorboard":
        loggers.append(TensorBoardLogger(run.path, name="", version="tensorboard"))
    elif name != "csv":
        # The same identity after a resume, so that W&B shows one run.
        marker = run.path / "wandb-id"
        identity = marker.read_text().strip() if marker.is_file() else os.urandom(4).hex()
        if is_rank_zero():
            marker.write_text(identity)
        loggers.append(
            WandbLogger(
                name=f"{run.path.parent.name}/{run.path.name}",
                project="visionattn",
                save_dir=run.path,
                version=identity,
                offline=name == "wandb-offline",
                resume="allow",
            )
        )
    return loggers
