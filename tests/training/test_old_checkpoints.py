"""Checkpoints of 0.1.0: their description and the names of their weights stand here as that version wrote them."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

import visionattn
from visionattn.training import create_model

PREPROCESSING = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
DCAL = {"img_size": [64, 56], "patch_size": 8, "glca_ratio": 0.3, "glca_pool": "avg"}
SLOTS = {"embed_dims": [8, 8], "kernel_sizes": [5, 3], "strides": [2, 2]}
# task: model, its arguments, outputs, input size, digest of the names and shapes of its weights
OLD: list[tuple[str, str, dict[str, Any], int, tuple[int, int, int], str]] = [
    ("classification", "nat_pico", {}, 10, (3, 32, 32), "13f13c279fe95681"),
    ("classification", "dinat_pico", {}, 10, (3, 32, 32), "6f70b080fdb0fb42"),
    ("classification", "halo_pico", {}, 10, (3, 32, 32), "c9a2b534c5a3f5e0"),
    ("fine_grained", "dcal_vit_pico", {**DCAL, "img_size": 64, "glca_ratio": 0.1}, 10, (3, 64, 64), "a447d8bae792634d"),
    ("reid", "dcal_vit_pico", DCAL, 0, (3, 64, 56), "3e8e6607e7b98d83"),
    ("mae", "vit_pico_patch4_32", {}, 0, (3, 32, 32), "e858258fc4838349"),
    ("object_discovery", "slot_cnn_pico", SLOTS, 0, (3, 32, 32), "346633af3c37b831"),
]
CASES = pytest.mark.parametrize(("task", "name", "kwargs", "outputs", "size", "digest"), OLD, ids=lambda x: str(x)[:16])


@CASES
def test_old_checkpoint_loads_with_equal_outputs(
    task: str, name: str, kwargs: dict[str, Any], outputs: int, size: tuple[int, int, int], digest: str, tmp_path: Path
) -> None:
    model = create_model(name, num_classes=outputs, **kwargs).eval()
    lines = sorted(f"{key} {list(value.shape)}" for key, value in model.state_dict().items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest, "names or shapes have changed"
    spec = {
        "model": name,
        "model_kwargs": kwargs,
        "num_classes": outputs,
        "class_names": [str(label) for label in range(10)],
        "preprocessing": {"input_size": list(size), **PREPROCESSING},
        "dataset": "folder",
        "task": task,
    }
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": {"name": name}, "visionattn": spec}, tmp_path / "old.ckpt")
    loaded = visionattn.load_model(tmp_path / "old.ckpt")
    assert loaded.spec.task == task
    assert loaded.spec.class_names == spec["class_names"]
    images = torch.randn(2, *size)
    with torch.inference_mode():
        assert torch.equal(loaded.model(images), model(images))
