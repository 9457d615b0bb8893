"""Contents of ``summary.json``, written at the end of a training."""

from typing import Any

from lightning.pytorch import Trainer

from visionattn.training.callbacks import Stopwatch
from visionattn.training.checkpoints.callbacks import BestCheckpoint
from visionattn_kernels.provenance import provenance


def summarize(
    trainer: Trainer, best: BestCheckpoint, stopwatch: Stopwatch, *, seed: Any, command: str
) -> dict[str, Any]:
    """Return score, length, data, hardware and versions of a training that has ended."""
    task: Any = trainer.lightning_module
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    score = best.best_model_score
    return {
        "model": task.spec.model,
        "task": task.kind,
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "data": data.describe(),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "best": {task.monitor: None if score is None else float(score)},
        "train_seconds": round(stopwatch.seconds, 1),
        "precision": str(trainer.precision),
        "seed": seed,
        **provenance(trainer.strategy.root_device),
        "command": command,
    }
