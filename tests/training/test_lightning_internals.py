"""Private attributes of Lightning that are used: these tests fail if Lightning moves one of them."""

import csv
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy

from tests.tasks.trainers import create_trainer
from visionattn.training.lightning_internals import cluster_environment, leave_restart_mode, log_step, request_stop


def test_request_stop_sets_the_attribute_of_lightning() -> None:
    trainer = create_trainer()
    assert not trainer.received_sigterm
    request_stop(trainer)
    assert trainer.received_sigterm


def test_cluster_environment_is_found_for_one_process() -> None:
    assert isinstance(cluster_environment(create_trainer()), LightningEnvironment)


class _LogsEachStep(BoringModel):
    """Log a value of each step in two ways, and note what callbacks then find."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        value = torch.tensor(float(batch_idx + 10 * self.current_epoch))
        self.log("slow", value, prog_bar=True, batch_size=2)
        log_step(self, "fast", value.requires_grad_(), 2, prog_bar=True)
        return super().training_step(batch, batch_idx)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        found = self.trainer.callback_metrics
        if batch_idx:
            self.found.append((found["slow"].item(), found["fast"].item()))


def test_log_step_logs_the_value_of_every_step(tmp_path: Path) -> None:
    model = _LogsEachStep()
    logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=1)
    create_trainer(max_epochs=2, limit_train_batches=4, log_every_n_steps=3, logger=logger).fit(model)
    assert [fast for _, fast in model.found] == [0, 1, 2, 10, 11, 12]
    assert all(slow == fast for slow, fast in model.found)
    assert not model.trainer.callback_metrics["fast"].requires_grad
    with (tmp_path / "metrics.csv").open() as file:
        rows = [(row["slow"], row["fast"]) for row in csv.DictReader(file)]
    assert [fast for _, fast in rows] == ["2.0", "11.0"]
    assert all(slow == fast for slow, fast in rows)


def test_leave_restart_mode_sets_an_attribute_that_exists() -> None:
    loop = create_trainer().fit_loop.epoch_loop.val_loop
    assert isinstance(loop, _EvaluationLoop)
    assert loop._has_run is False
    loop._has_run = True
    leave_restart_mode(loop)
    assert loop._has_run is False


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (ModelParallelStrategy, ["_data_parallel_size"]),
        (WeightAveraging, ["_average_model"]),
        (WandbLogger, ["_experiment", "_offline", "_wandb_init"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bases_have_the_attributes_that_subclasses_use(owner: type, names: list[str]) -> None:
    source = inspect.getsource(owner)
    assert [name for name in names if f"self.{name}" not in source] == []
