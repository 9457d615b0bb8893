"""Where the metrics of a training go: ``metrics.csv``, and what ``--logger`` names."""

import csv
import os
import shutil
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning_utilities.core.rank_zero import rank_zero_warn

from visionattn.cli.errors import UsageError, one_line
from visionattn.cli.report import write_csv
from visionattn.cli.runs import RunFolder, is_rank_zero

LoggerName = Literal["csv", "tensorboard", "wandb", "wandb-offline"]


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
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(text.splitlines()))
        kept = [
            row
            # The last row may have been cut short, in the middle of a number, too.
            for row in (rows if text.endswith("\n") else rows[:-1])
            if None not in row and None not in row.values() and row["step"].isdigit() and int(row["step"]) < step
        ]
        if len(kept) == len(rows):
            return
        shutil.copy2(path, self.run.path / self.run.unused("metrics-interrupted.csv"))
        write_csv(kept, path)


class _AppendingWriter(ExperimentWriter):
    """Lightning's, but for what it does to a file that is there, and to one that cannot be written.

    A disk that is full ends the run with the next checkpoint, not for a row of metrics: rows wait for their turn.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.path, self.warned = Path(self.metrics_file_path), False
        if self.path.is_file():
            with self.path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def _check_log_dir_exists(self) -> None:
        """Lightning's deletes what it finds."""

    def save(self) -> None:
        """Adds the rows since the last time."""
        if not self.metrics:
            return
        columns = sorted({*self.metrics_keys, *chain(*self.metrics)})
        try:
            if columns == self.metrics_keys and self.path.is_file():
                self._append()
            else:
                self._rewrite(columns)
        except OSError as error:
            if not self.warned:
                rank_zero_warn(f"cannot write {self.path}: {error.strerror or error}; it is tried again")
            self.warned = True
            return
        self.metrics, self.metrics_keys = [], columns

    def _append(self) -> None:
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.metrics_keys).writerows(self.metrics)
        except OSError:
            os.truncate(self.path, size)  # a row that was cut short would be the beginning of the next one
            raise

    def _rewrite(self, columns: list[str]) -> None:
        """With more columns; a process that is killed leaves the one file or the other."""
        rows: list[dict[str, Any]] = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        write_csv([{key: row.get(key, "") for key in columns} for row in [*rows, *self.metrics]], self.path)


class RunWandbLogger(WandbLogger):
    """Lightning's logger for W&B; where that cannot be reached or logged in to, metrics are kept for it in a folder."""

    @property
    def experiment(self) -> Any:
        """The run, offline if need be."""
        import wandb

        if self._experiment is None and is_rank_zero():
            try:
                return super().experiment
            except wandb.Error as error:
                wandb.teardown()  # its service holds on to the identity of the run that failed
                self._offline, self._wandb_init["mode"] = True, "offline"
                rank_zero_warn(
                    f"no connection to W&B ({one_line(str(error))}): training goes on, with metrics in metrics.csv and "
                    f"for W&B in a folder, to be uploaded by: wandb sync {self.save_dir}/wandb/offline-run-*"
                )
        return super().experiment


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
            RunWandbLogger(
                name=f"{run.path.parent.name}/{run.path.name}",
                project="visionattn",
                save_dir=run.path,
                version=identity,
                offline=name == "wandb-offline",
                resume="allow",
            )
        )
    return loggers
