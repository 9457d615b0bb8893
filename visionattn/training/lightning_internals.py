"""Every private attribute of Lightning's trainer that is used, each with the reason.

`tests/training/test_lightning_internals.py` fails if Lightning moves one of them.
"""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import ClusterEnvironment
from torch import Tensor


def request_stop(trainer: Trainer) -> None:
    """Stop a training after this batch as SIGTERM does: with a checkpoint that resumes in the middle of the epoch.

    ``trainer.should_stop``, which is public, takes the epoch for complete; ``trainer.received_sigterm`` cannot be set.
    """
    trainer._signal_connector.received_sigterm = True


def log_step(module: LightningModule, name: str, value: Tensor, count: int, prog_bar: bool = False) -> None:
    """Log a value of a training step, as ``module.log`` does; ``count`` is the size of the batch.

    From the second step of an epoch on, ``module.log`` would take ten times as long to check that nothing else changed.
    """
    trainer: Any = module.trainer
    results: Any = trainer._results or {}  # None outside a training
    key = f"training_step.{name}"
    if results is None or key not in results or results[key].has_reset:
        module.log(name, value, prog_bar=prog_bar, batch_size=count)
    else:
        results.update_metrics(key, value.detach(), count)


def cluster_environment(trainer: Trainer) -> ClusterEnvironment:
    """Return the environment of a trainer; strategies, where it is public, have it for several processes only."""
    environment: Any = trainer._accelerator_connector.cluster_environment
    return environment


def leave_restart_mode(validation: Any) -> None:
    """Let the next validation loop run once more, although it ran before the epoch was found to be complete."""
    validation._has_run = False
