"""A silent trainer on the CPU, and the scenario of a run that is killed and resumed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from visionattn.training.checkpoints.callbacks import AtomicCheckpointIO, LastCheckpoint


def create_trainer(
    folder: Path | None = None, callbacks: Sequence[Callback] = (), every_n_steps: int = 0, **options: Any
) -> Trainer:
    """Return a trainer without output.

    Args:
        folder: folder of ``last.ckpt``; None for no checkpoints.
        callbacks: callbacks before the one that saves ``last.ckpt``.
        every_n_steps: save also every so many steps.
        **options: further arguments of the trainer.
    """
    last = [] if folder is None else [LastCheckpoint(folder, every_n_steps)]
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"accelerator": "cpu", "use_distributed_sampler": False, "num_sanity_val_steps": 0, "max_epochs": 1}
    return Trainer(
        callbacks=[*callbacks, *last],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=folder is not None,
        **{**silent, **defaults, **options},
    )


def assert_killed_run_resumes(create: Callable[[], Any], fit: Callable[..., Trainer], folder: Path) -> None:
    """Check that a run that is killed in its last step and resumed ends with the weights of an uninterrupted one.

    Args:
        create: returns the task, always with the same weights.
        fit: trains a task: ``fit(task, folder, resume, max_epochs=2)``, with ``last.ckpt`` in the folder.
        folder: folder of the checkpoint.
    """
    whole, half, rest = create(), create(), create()
    torch.manual_seed(1)
    steps = fit(whole, max_epochs=2).global_step
    original = half.training_step

    def killed(batch: Any, batch_idx: int) -> Any:
        if half.global_step == steps - 1:
            raise RuntimeError("killed")
        return original(batch, batch_idx)

    half.training_step = killed
    torch.manual_seed(1)
    with pytest.raises(RuntimeError, match="killed"):
        fit(half, folder, max_epochs=2)
    assert fit(rest, folder, folder / "last.ckpt", max_epochs=2).global_step == steps
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name
