"""Evaluates and trains in two processes on the CPU: ``python reid_in_processes.py FOLDER``; writes what each did."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from tests.tasks.trainers import create_trainer
from visionattn.data import ReidData
from visionattn.tasks.reid import ReidTask


class Note(Callback):
    """Keeps the names of the images of each training batch, and of those evaluated."""

    def __init__(self) -> None:
        self.trained: list[list[str]] = []
        self.evaluated: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.trained.append(batch.name)

    def on_validation_batch_start(self, trainer: Trainer, module: Any, batch: Any, *args: Any) -> None:
        self.evaluated += batch.name


def create() -> tuple[ReidTask, ReidData]:
    """The same weights in every process."""
    seed_everything(0, verbose=False)
    task = ReidTask("test_resnet", lr=1e-3, center_weight=1e-3)
    return task, ReidData("identities", batch_size=16, eval_batch_size=50, num_workers=0, seed=0)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    note = Note()
    task, data = create()
    # Forked processes need not import everything again.
    options: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2, "callbacks": [note, Writer(folder, note)]}
    create_trainer(**options).validate(task, datamodule=data, verbose=False)
    task, data = create()
    create_trainer(**options, limit_val_batches=0).fit(task, datamodule=data)


class Writer(Callback):
    """Leaves a file per process before it ends."""

    def __init__(self, folder: Path, note: Note) -> None:
        self.folder, self.note = folder, note

    def _write(self, trainer: Trainer, task: Any, stage: str) -> None:
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        content = {
            "metrics": metrics,
            "trained": self.note.trained,
            "evaluated": self.note.evaluated,
            "weight": next(task.parameters()).sum().item(),
            "centers": next(iter(task.centers.values())).centers.sum().item(),
        }
        (self.folder / f"{stage}{trainer.global_rank}.json").write_text(json.dumps(content))

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        self._write(trainer, task, "validate")

    def on_fit_end(self, trainer: Trainer, task: Any) -> None:
        self._write(trainer, task, "fit")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
