"""Facts about the training of a checkpoint, from the file and the files beside it."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Self

import yaml

from visionattn.training import AVERAGE_BESIDE, METADATA_KEY
from visionattn.training.checkpoints.callbacks import BEST
from visionattn.training.checkpoints.files import read_checkpoint

TRAINER = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "devices")
"""The trainer's options that matter to what is trained."""


@dataclass(frozen=True)
class RunRecord:
    """A training; what is not known is empty.

    Attributes:
        epochs: Epochs of the training, the last of which may be incomplete.
        steps: Updates of the training.
        has_average: Whether there is a moving average of the weights; validation then used the average.
        is_best: Whether validation selected these weights among all epochs.
        scores: Validation scores of these weights, by names such as `top1`.
        took: Time and hardware.
        recipe: Options of the run, without paths of its machine.
    """

    epochs: int | None = None
    steps: int | None = None
    has_average: bool = False
    is_best: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    took: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Path) -> Self:
        """Collect the facts of the training that wrote a file; empty if `train.py` did not write it."""
        content = read_checkpoint(checkpoint)
        if not {METADATA_KEY, "state_dict"} <= content.keys():
            return cls()
        folder = checkpoint.parent.parent
        steps = int(content["global_step"]) if "global_step" in content else None
        return cls(
            epochs=int(content["epoch"]) + 1 if "epoch" in content else None,
            steps=steps,
            has_average=AVERAGE_BESIDE in content,
            is_best=checkpoint.name == BEST,
            scores=(_measured(folder / "metrics.csv", steps) if steps else {}) or _monitored(content, checkpoint),
            took=_took(folder / "summary.json"),
            recipe=_recipe(folder / "config.yaml"),
        )


def _measured(path: Path, steps: int) -> dict[str, float]:
    """Return the validation metrics after an update, from a run's `metrics.csv`."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("step") == str(steps - 1)]
        return {
            name.removeprefix("val_"): float(value)
            for row in rows
            for name, value in row.items()
            if name and name.startswith("val_") and value
        }
    except (OSError, ValueError, csv.Error):
        return {}


def _took(path: Path) -> str:
    """Return time and hardware of a finished training, from its `summary.json`."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        hardware, minutes = summary["hardware"], summary["train_seconds"] / 60
        threads = f", threads: {hardware['threads']}" if "threads" in hardware else ""
        return f"{minutes:.1f} min on {hardware['name']}{threads}"
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _monitored(content: dict[str, Any], checkpoint: Path) -> dict[str, float]:
    """Return the score that selected `best.ckpt`, from the checkpoint itself."""
    if checkpoint.name != BEST:
        return {}
    for name, state in content.get("callbacks", {}).items():
        if name.startswith("BestCheckpoint") and state.get("best_model_score") is not None:
            return {str(state["monitor"]).removeprefix("val_"): float(state["best_model_score"])}
    return {}


def _recipe(path: Path) -> dict[str, Any]:
    """Return the options of a run's `config.yaml` that are set and do not depend on the machine."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(config, dict):
        return {}
    trainer = config.get("trainer")
    kept = {name: config.get(name) for name in ("task", "seed_everything", "ema", "model", "data")}
    kept["trainer"] = {name: trainer.get(name) for name in TRAINER} if isinstance(trainer, dict) else None
    found = _set_options(kept)
    return found if isinstance(found, dict) else {}


def _set_options(value: Any) -> Any:
    """Drop options that are null or paths of a machine."""
    if not isinstance(value, dict):
        return None if isinstance(value, str) and _is_place(value) else value
    kept = {
        name: _set_options(inner)
        for name, inner in value.items()
        if name != "root" and not str(name).endswith(("_path", "_file", "_dir"))
    }
    return {name: inner for name, inner in kept.items() if inner not in (None, {})}


def _is_place(text: str) -> bool:
    return PurePath(text).is_absolute() or text.startswith(("~", "local-dir:", "./", "../"))
