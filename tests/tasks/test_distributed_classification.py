"""Two processes on the CPU train and evaluate as one does, with the model whole in each (DDP) or divided (FSDP2).

Sums of fp32 numbers come in another order, which is all that may differ: after five steps of SGD the weights, which are
up to about 1 in size, agree within 1e-6; those of AdamW, which divides by what is small, within 1e-4.
"""

import csv
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tasks.classification_in_processes import GLOBAL_BATCH, STOP_AFTER
from visionattn.training import load_checkpoint

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.tasks.classification_in_processes", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    (folder / "output").write_text(done.stdout)
    return folder


def found(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{name}-{rank}.pt", weights_only=True)


def seen(folder: Path, *names: str) -> list[dict[str, float]]:
    """Images of each step, and what augmentation made of them, of both processes."""
    return [
        first | second
        for name in names
        for first, second in zip(*(found(folder, name, rank)["seen"] for rank in (0, 1)), strict=True)
    ]


def furthest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one_with_the_global_batch(folder: Path, strategy: str) -> None:
    one, two = found(folder, "one"), [found(folder, strategy, rank) for rank in (0, 1)]
    assert all(len(step) == GLOBAL_BATCH for step in one["seen"])
    assert seen(folder, strategy) == one["seen"]
    losses = [sum(pair) / 2 for pair in zip(*(rank["losses"] for rank in two), strict=True)]
    assert losses == pytest.approx(one["losses"], abs=1e-6)
    for rank in two:
        assert furthest(rank["weights"], one["weights"]) < 1e-6


def test_blocks_with_forward_methods_of_their_own_are_gathered(folder: Path) -> None:
    assert furthest(found(folder, "dcal-fsdp2")["weights"], found(folder, "one-dcal")["weights"]) < 1e-6


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_each_image_is_evaluated_once(folder: Path, strategy: str) -> None:
    one = found(folder, "one")["metrics"]
    for rank in (0, 1):
        two = found(folder, strategy, rank)["metrics"]
        for what in ("val_top1", "val_top5"):
            # Counts of 355 images, which neither two processes nor their batches of 59 share evenly.
            assert round(two[what] * 355) == pytest.approx(two[what] * 355, abs=1e-4)
            assert two[what] == one[what]
        assert two["val_balanced_top1"] == pytest.approx(one["val_balanced_top1"], abs=1e-6)
        assert two["val_loss"] == pytest.approx(one["val_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("stopped", "resumed"), [("stopped", "stopped-ddp"), ("stopped", "stopped-fsdp2"), ("sharded", "sharded-resumed")]
)
def test_signal_to_one_process_stops_both_and_they_resume_exactly(folder: Path, stopped: str, resumed: str) -> None:
    whole = found(folder, "one-adamw")
    for rank in (0, 1):
        first, second = found(folder, stopped, rank), found(folder, resumed, rank)
        assert first["stopped"]
        assert len(first["seen"]) == STOP_AFTER
        assert furthest(second["weights"], whole["weights"]) < 1e-4
        assert furthest(second["weights"], found(folder, "stopped-ddp")["weights"]) < 1e-5
        assert second["metrics"]["val_loss"] == pytest.approx(whole["metrics"]["val_loss"], abs=1e-4)
    assert seen(folder, stopped, resumed) == whole["seen"]


def test_averaging_accumulation_compilation_and_checkpointed_gradients_combine(folder: Path) -> None:
    one, two = found(folder, "one-ema"), found(folder, "ddp-saving")
    assert furthest(two["weights"], one["weights"]) < 1e-6
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-5)
    assert furthest(found(folder, "fsdp2-saving")["weights"], found(folder, "one")["weights"]) < 1e-6


def test_centroids_of_routing_follow_the_images_of_all_processes(folder: Path) -> None:
    one = found(folder, "one-routing")
    name = "model.blocks.0.attn.clusters.totals"
    assert one["weights"][name][..., -1].sum().item() > 8  # more than the one vector per cluster of the start
    for rank in (0, 1):
        two = found(folder, "ddp-routing", rank)
        assert furthest(two["weights"], one["weights"]) < 1e-5
        assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-5)


def test_sharded_checkpoint_becomes_one_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded = folder / "sharded-resumed" / "last.ckpt"
    with pytest.raises(ValueError, match=r"folder of shards.*consolidate_checkpoint .*last.ckpt"):
        load_checkpoint(sharded)
    monkeypatch.setattr(sys, "argv", ["consolidate_checkpoint", str(sharded)])
    runpy.run_module("lightning.fabric.utilities.consolidate_checkpoint", run_name="__main__")
    model, spec = load_checkpoint(f"{sharded}.consolidated")
    assert spec.num_classes == 10
    held = {f"model.{name}": value for name, value in model.state_dict().items()}
    assert furthest(held, found(folder, "sharded-resumed")["weights"]) == 0


def test_command_keeps_one_run_and_resumes_with_any_strategy(folder: Path) -> None:
    assert [path.name for path in (folder / "runs" / "two").iterdir()] == ["0"]
    run = folder / "runs" / "two" / "0"
    with (run / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["train_loss"]] == list(range(10))
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")[1].model == "test_vit"
    output = (folder / "output").read_text()
    assert output.count("training starts from scratch") == 1  # told by the first process alone
    assert output.count("best val top-1") == 4
