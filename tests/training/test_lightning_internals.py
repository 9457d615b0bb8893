"""Private attributes of Lightning that are used: these tests fail if Lightning moves one of them."""

import inspect

import pytest
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy

from tests.tasks.trainers import create_trainer
from visionattn.training.lightning_internals import cluster_environment, leave_restart_mode, request_stop


def test_request_stop_sets_the_attribute_of_lightning() -> None:
    trainer = create_trainer()
    assert not trainer.received_sigterm
    request_stop(trainer)
    assert trainer.received_sigterm


def test_cluster_environment_is_found_for_one_process() -> None:
    assert isinstance(cluster_environment(create_trainer()), LightningEnvironment)


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
