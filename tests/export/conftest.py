"""Checkpoints of untrained models for every task, as `train.py` writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import visionattn  # noqa: F401  registers the models
from visionattn.training import ModelSpec

Save = Callable[..., Path]
NARROW_NAT: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 1], "num_heads": [1, 2, 2], "kernel_size": 3}


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Return a function that writes a checkpoint with a moving average; raw weights are half of the average."""

    def write(model: str, num_classes: int = 3, names: list[str] | None = None, **options: Any) -> Path:
        kwargs = options.pop("model_kwargs", {})
        built = timm.create_model(model, num_classes=num_classes, **kwargs)
        weights = {f"model.{name}": value for name, value in built.state_dict().items()}
        preprocessing = {
            "input_size": (3, 32, 32),
            "mean": (0.4, 0.5, 0.6),
            "std": (0.2, 0.25, 0.3),
            "interpolation": "bilinear",
            "crop_pct": 0.9,
            "crop_mode": "center",
            **options.pop("preprocessing", {}),
        }
        names = [f"class {i}" for i in range(num_classes)] if names is None else names
        spec = ModelSpec(model, kwargs, num_classes, names, preprocessing, "folder", **options)
        path = tmp_path / "run" / "checkpoints" / "best.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        halves = {name: value / 2 if value.is_floating_point() else value for name, value in weights.items()}
        content = {
            "epoch": 2,
            "global_step": 90,
            "pytorch-lightning_version": "2.6.4",
            "state_dict": weights,
            "current_model_state": halves,
            "callbacks": {"BestCheckpoint{}": {"monitor": "val_top1", "best_model_score": torch.tensor(0.625)}},
            "visionattn": spec.to_dict(),
        }
        torch.save(content, path)
        return path

    return write
