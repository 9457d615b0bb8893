"""Training of several branches: pairs, losses, their weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional as F

from tests.tasks.trainers import create_trainer
from visionattn.data import ImageClassificationData
from visionattn.tasks.classification import ClassificationTask
from visionattn.tasks.fine_grained import FineGrainedTask
from visionattn.training import load_checkpoint

MODEL = "test_resnet"
DCAL: dict[str, Any] = {
    "name": "dcal_vit_pico",
    "model_kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
}


def fit(task: ClassificationTask, folder: Path | None = None, **options: Any) -> Trainer:
    defaults = {"limit_train_batches": 3, "limit_val_batches": 1}
    trainer = create_trainer(folder, **{**defaults, **options})
    trainer.fit(task, datamodule=ImageClassificationData(batch_size=6, img_size=32, num_workers=0, seed=0))
    return trainer


def test_each_batch_meets_a_permutation_of_itself(pairs: list[Tensor | None]) -> None:
    fit(FineGrainedTask(**DCAL), limit_val_batches=0)
    assert len(pairs) == 3
    assert all(pair is not None and sorted(pair.tolist()) == list(range(6)) for pair in pairs)
    assert len({tuple(pair.tolist()) for pair in pairs if pair is not None}) == 3


def test_branches_have_losses_of_their_own_and_weights() -> None:
    task = FineGrainedTask(**DCAL, lr=1e-12, weight_decay=0)
    expected: dict[str, float] = {}
    original = task.training_step

    def step(batch: Any, batch_idx: int) -> Any:
        state = torch.get_rng_state()
        with torch.no_grad():
            model: Any = task.model
            found = model.forward_branches(batch.image, torch.randperm(6))
        expected.update({name: F.cross_entropy(x.logits, batch.target).item() for name, x in found.items()})
        torch.set_rng_state(state)
        return original(batch, batch_idx)

    task.training_step = step  # type: ignore[method-assign]
    metrics = fit(task, limit_train_batches=1, limit_val_batches=0).callback_metrics
    assert list(expected) == ["sa", "glca", "pwca"]
    for name, loss in expected.items():
        assert metrics[f"train_loss_{name}"].item() == pytest.approx(loss, rel=1e-3)
    # The weights' logarithms begin at 0.
    assert metrics["train_loss"].item() == pytest.approx(sum(expected.values()) / 2, rel=1e-3)
    assert {name for name in metrics if name.startswith("weight_")} == {"weight_sa", "weight_glca", "weight_pwca"}


def test_the_losses_weights_are_learned_and_not_decayed() -> None:
    task = FineGrainedTask(**DCAL, opt="momentum", lr=0.1, weight_decay=0.5)
    trainer = fit(task, limit_val_batches=0)
    learned = list(task.weighting.parameters())
    assert all(parameter.abs().min() > 1e-4 for parameter in learned)
    for group in trainer.optimizers[0].param_groups:
        if any(parameter is own for own in learned for parameter in group["params"]):
            assert group["weight_decay"] == 0


def test_mixed_images_go_through_all_branches() -> None:
    assert fit(FineGrainedTask(**DCAL, mixup=0.4, smoothing=0.1)).global_step == 3


def test_a_plain_model_is_trained_as_by_classification() -> None:
    states = []
    for kind in (ClassificationTask, FineGrainedTask):
        torch.manual_seed(0)
        task = kind(MODEL, lr=1e-3)
        metrics = fit(task).callback_metrics
        assert {name for name in metrics if name.startswith("train_loss")} == {"train_loss"}
        states.append(task.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_checkpoint_names_its_task_and_goes_on_with_that_alone(tmp_path: Path) -> None:
    task = FineGrainedTask(**DCAL)
    fit(task, tmp_path)
    model, spec = load_checkpoint(tmp_path / "last.ckpt")
    assert (spec.task, spec.num_classes) == ("fine_grained", 10)
    assert model.glca_head.weight.equal(task.model.glca_head.weight)
    trainer = create_trainer(max_epochs=2)
    data = ImageClassificationData(batch_size=6, img_size=32, num_workers=0, seed=0)
    with pytest.raises(ValueError, match=r"last\.ckpt was trained with --task fine_grained, not classification"):
        trainer.fit(ClassificationTask(MODEL), datamodule=data, ckpt_path=tmp_path / "last.ckpt")
