"""Every private attribute of Lightning's trainer that is used, each with the reason.

`tests/training/test_lightning_internals.py` fails if Lightning moves one of them.
"""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import ClusterEnvironment


def request_stop(trainer: Trainer) -> None:
    """Stop a training after this batch as SIGTERM does: with a checkpoint that resumes in the middle of the epoch.

    ``trainer.should_stop``, which is public, takes the epoch for complete; ``trainer.received_sigterm`` cannot be set.
    """
    trainer._signal_connector.received_sigterm = True


def cluster_environment(trainer: Trainer) -> ClusterEnvironment:
    """Return the environment of a trainer; strategies, where it is public, have it for several processes only."""
    environment: Any = trainer._accelerator_connector.cluster_environment
    return environment


def leave_restart_mode(validation: Any) -> None:
    """Let the next validation loop run once more, although it ran before the epoch was found to be complete."""
    validation._has_run = False
