"""Loggers of a training: ``metrics.csv``, and what ``--logger`` names."""

import csv
import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import chain
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn

from visionattn.errors import UsageError
from visionattn.output import write_csv
from visionattn.training.runs import RunFolder, is_rank_zero

LoggerName = Literal["csv", "tensorboard", "wandb", "wandb-offline", "mlflow", "trackio"]

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",), "trackio": ("trackio",)}
"""For each logger whose package is optional, the modules of which one is wanted."""
PROJECT = "visionattn"
"""Name under which services list the runs."""

SAVE_EVERY = 50
"""Steps between writes of ``metrics.csv``."""


class RunCSVLogger(Logger):
    """Write ``metrics.csv`` in the folder of a run; a resumed run appends to it.

    Lightning's own logger deletes a file that exists. A full disk ends the run at the next checkpoint, not for a row of
    metrics: rows wait until they can be written.

    Args:
        run: folder of the run.
        resume_step: remove rows from this step on, which will be written again; a copy of the old file is kept.
    """

    def __init__(self, run: RunFolder, resume_step: int | None = None) -> None:
        super().__init__()
        self.run, self.path = run, run.path / "metrics.csv"
        self.rows: list[dict[str, Any]] = []  # not written yet
        self.columns: list[str] | None = None  # of the file, once it has been looked at
        self.resume_step, self.warned = resume_step, False

    @property
    def name(self) -> str:
        """Empty: the folder has the name of the run."""
        return ""

    version = name

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return str(self.run.path)

    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` has them all."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Keep a row, and write all rows every 50 steps."""
        if not is_rank_zero():
            return
        step = len(self.rows) if step is None else step
        values = {key: getattr(value, "item", lambda value=value: value)() for key, value in metrics.items()}
        self.rows.append({**values, "step": step})
        if (step + 1) % SAVE_EVERY == 0:
            self.save()

    def save(self) -> None:
        """Write the rows since the last time."""
        if not is_rank_zero():
            return
        if self.columns is None:
            self.columns = self._open()
        if not self.rows:
            return
        columns = sorted({*self.columns, *chain(*self.rows)})
        try:
            if columns == self.columns and self.path.is_file():
                self._append(columns)
            else:
                self._rewrite(columns)
        except OSError as error:
            if not self.warned:
                rank_zero_warn(f"cannot write {self.path}: {error.strerror or error}; it is tried again")
            self.warned = True
            return
        self.rows, self.columns = [], columns

    def finalize(self, status: str) -> None:
        """Write the last rows."""
        self.save()

    def _open(self) -> list[str]:
        """Return the columns of the file of an earlier run, without the rows that will be written again."""
        if not self.path.is_file():
            return []
        if self.resume_step is not None:
            self._rewind(self.resume_step)
        with self.path.open(newline="") as file:
            return next(csv.reader(file), [])

    def _rewind(self, step: int) -> None:
        text = self.path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(text.splitlines()))
        kept = [
            row
            # The last row may have been cut short, even in the middle of a number.
            for row in (rows if text.endswith("\n") else rows[:-1])
            if None not in row and None not in row.values() and row["step"].isdigit() and int(row["step"]) < step
        ]
        if len(kept) < len(rows):
            shutil.copy2(self.path, self.run.path / self.run.unused("metrics-interrupted.csv"))
            write_csv(kept, self.path)

    def _append(self, columns: list[str]) -> None:
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, columns).writerows(self.rows)
        except OSError:
            os.truncate(self.path, size)  # the next row would continue a row that was cut short
            raise

    def _rewrite(self, columns: list[str]) -> None:
        """Write the file with more columns; a killed process leaves the old or the new file."""
        rows: list[dict[str, Any]] = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        write_csv([{key: row.get(key, "") for key in columns} for row in [*rows, *self.rows]], self.path)


class RunWandbLogger(WandbLogger):
    """Lightning's logger for W&B; without a connection or a login, it keeps metrics for W&B in a folder."""

    @property
    def experiment(self) -> Any:
        """The W&B run, offline if necessary."""
        import wandb

        # Lightning has no public way to change a logger's mode once connecting has failed.
        if self._experiment is None and is_rank_zero():
            try:
                return super().experiment
            except wandb.Error as error:
                wandb.teardown()  # its service keeps the identity of the run that failed
                self._offline, self._wandb_init["mode"] = True, "offline"
                rank_zero_warn(
                    f"no connection to W&B ({' '.join(str(error).split())}): training continues, with metrics in "
                    f"metrics.csv and for W&B in a folder, to be uploaded by: wandb sync {self.save_dir}/wandb/"
                    "offline-run-*"
                )
        return super().experiment

    def finalize(self, status: str) -> None:
        """End the W&B run, so that the next training in this process gets one of its own."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))


class RunMLFlowLogger(MLFlowLogger):
    """Lightning's logger for MLflow, to where MLflow is set to; a resumed run continues its MLflow run.

    Args:
        run: folder of the run, which keeps the identity that MLflow gives.
        title: name of the run.
    """

    def __init__(self, run: RunFolder, title: str) -> None:
        import mlflow

        self.marker = run.path / "mlflow-id"
        self.resumed = self.marker.is_file()
        identity = self.marker.read_text().strip() if self.resumed else None
        super().__init__(PROJECT, title, mlflow.get_tracking_uri(), run_id=identity)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the options at the start of a run; MLflow would refuse others later."""
        if not self.resumed:
            super().log_hyperparams(params)
            self.marker.write_text(str(self.run_id))


class TrackioLogger(Logger):
    """Log metrics with Trackio, which Lightning has no logger for.

    Args:
        name: name of the run.
        resume: continue the run of that name.
    """

    def __init__(self, name: str, resume: bool) -> None:
        super().__init__()
        self._name, self.resume, self.run = name, resume, None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._name

    version = name

    @property
    def experiment(self) -> Any:
        """The Trackio run, which begins upon first use."""
        import trackio

        if self.run is None:
            self.run = trackio.init(project=PROJECT, name=self._name, resume="allow" if self.resume else "never")
        return self.run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the options of the training."""
        self.experiment.config.update(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values of a step."""
        self.experiment.log(dict(metrics), step=step)

    def finalize(self, status: str) -> None:
        """Send the last values."""
        if self.run is not None:
            import trackio

            trackio.finish()


def check_logger(name: LoggerName) -> None:
    """Refuse a logger whose package is not installed."""
    modules = PACKAGES.get(name, ())
    found = [spec for spec in map(find_spec, modules) if spec and spec.origin]  # a folder of that name has no origin
    if modules and not found:
        raise UsageError(f"--logger {name} needs a package that is not installed: pip install {modules[0]}")


def create_loggers(run: RunFolder, name: LoggerName, resume_step: int | None) -> list[Logger]:
    """Return the CSV logger and the one that ``--logger`` names.

    Services know a run by an identity that a file in its folder keeps, so that a resumed run continues theirs.
    """
    loggers: list[Logger] = [RunCSVLogger(run, resume_step)]
    title = f"{run.path.parent.name}/{run.path.name}"
    if name == "tensorboard":
        loggers.append(TensorBoardLogger(run.path, name="", version="tensorboard"))
    elif name in ("wandb", "wandb-offline"):
        identity, _ = _identify(run, "wandb")
        options: dict[str, Any] = {"project": PROJECT, "save_dir": run.path, "resume": "allow"}
        loggers.append(RunWandbLogger(title, version=identity, offline=name == "wandb-offline", **options))
    elif name == "mlflow":
        loggers.append(RunMLFlowLogger(run, title))
    elif name == "trackio":
        identity, resumed = _identify(run, "trackio")
        loggers.append(TrackioLogger(f"{title} {identity}", resumed))
    return loggers


def _identify(run: RunFolder, service: str) -> tuple[str, bool]:
    """Return the identity of a run for a service, and whether the service has seen it before."""
    marker = run.path / f"{service}-id"
    seen = marker.is_file()
    identity = marker.read_text().strip() if seen else os.urandom(4).hex()
    if is_rank_zero():
        marker.write_text(identity)
    return identity, seen
