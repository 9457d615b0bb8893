"""Training of a model with routing attention: what is logged, averaged weights, resumed runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from tests.tasks.trainers import assert_killed_run_resumes, create_trainer
from visionattn.data import ImageClassificationData
from visionattn.tasks import ClassificationTask
from visionattn.training.averaging import MovingAverage

TOTALS = "model.blocks.0.attn.clusters.totals"


def create(**options: Any) -> ClassificationTask:
    narrow = {"embed_dim": 16, "depth": 2, "patch_size": 4, "mixer_kwargs": [{"num_clusters": 4}, None]}
    return ClassificationTask("iso_nano_routing", model_kwargs=narrow, lr=1e-2, **options)


def fit(
    task: ClassificationTask, folder: Path | None = None, resume: Path | None = None, ema: bool = False, **options: Any
) -> Trainer:
    averaging = [MovingAverage(decay=0.5)] if ema else []
    limits = {"limit_train_batches": 4, "limit_val_batches": 1}
    trainer = create_trainer(folder, averaging, 1, **limits, **options)
    torch.manual_seed(0)
    data = ImageClassificationData(batch_size=4, eval_batch_size=8, img_size=32, num_workers=0, seed=0)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    return trainer


def totals(task: ClassificationTask) -> Tensor:
    return task.state_dict()[TOTALS]


@pytest.fixture(scope="module")
def plain() -> tuple[ClassificationTask, Trainer]:
    task = create()
    return task, fit(task)


def test_loss_and_coverage_are_logged(plain: tuple[ClassificationTask, Trainer]) -> None:
    metrics = plain[1].callback_metrics
    assert 0.5 < metrics["routing_coverage"] <= 1
    assert metrics["train_loss_commitment"] > 0
    parts = metrics["train_loss_ce"] + metrics["train_loss_commitment"]
    assert metrics["train_loss"].item() == pytest.approx(parts.item())


def test_gradient_checkpointing_changes_no_centroid(plain: tuple[ClassificationTask, Trainer]) -> None:
    task = create(grad_checkpointing=True)
    fit(task)
    assert torch.equal(totals(task), totals(plain[0]))


def test_average_of_the_weights_has_the_current_centroids(plain: tuple[ClassificationTask, Trainer]) -> None:
    task = create()
    fit(task, ema=True)
    assert torch.equal(totals(task), totals(plain[0]))
    assert not torch.equal(task.model.head.fc.weight, plain[0].model.head.fc.weight)


def test_killed_run_resumes_with_its_centroids(tmp_path: Path) -> None:
    def fit_averaged(*args: Any, **options: Any) -> Trainer:
        return fit(*args, ema=True, accumulate_grad_batches=2, **options)

    assert_killed_run_resumes(create, fit_averaged, tmp_path)
