"""A run that is interrupted and resumed ends where an uninterrupted one does: steps, rates, data, weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tests.tasks.trainers import create_trainer
from visionattn.data import ImageClassificationData
from visionattn.tasks.classification import ClassificationTask
from visionattn.training.checkpoints.callbacks import BestCheckpoint
from visionattn.training.lightning_internals import request_stop

BATCHES = 4  # per epoch


class Trace(Callback):
    """Notes what each update saw, and stops the run after some batches."""

    def __init__(self, stop_after: int | None = None, by: str = "sigterm") -> None:
        self.stop_after, self.by = stop_after, by
        self.batches: list[tuple[int, list[str], float]] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.batches.append((trainer.current_epoch, batch.name, batch.image.sum().item()))

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if self.stop_after is not None and len(self.batches) == self.stop_after:
            if self.by == "kill":
                raise RuntimeError("killed")
            request_stop(trainer)


def run(
    folder: Path,
    trace: Trace,
    resume: Path | None = None,
    ema: bool = True,
    every: int = 0,
    opt: str = "adamw",
    l2_penalty: float = 0.0,
    **options: Any,
) -> tuple[Trainer, ClassificationTask]:
    task = ClassificationTask(
        "test_resnet",
        opt=opt,
        lr=1e-3,
        l2_penalty=l2_penalty,
        warmup_epochs=0.5,
        smoothing=0.1,
        mixup=0.2,
        cutmix=1.0,
        drop_path_rate=0.1,
    )
    data = ImageClassificationData(batch_size=8, img_size=32, num_workers=options.pop("num_workers", 0), seed=1)
    averaging = [EMAWeightAveraging(decay=0.9)] if ema else []
    length = {"max_epochs": 3, "limit_val_batches": 2, "num_sanity_val_steps": 2} | options
    trainer = create_trainer(
        folder, [*averaging, trace, BestCheckpoint(folder)], every, limit_train_batches=BATCHES, **length
    )
    torch.manual_seed(0)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    return trainer, task


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Trainer, ClassificationTask]:
    trace = Trace()
    return trace, *run(tmp_path_factory.mktemp("whole"), trace)


def assert_same(whole: Any, first: Trace, second: Trace, trainer: Trainer, task: ClassificationTask, lost: int) -> None:
    trace, expected_trainer, expected = whole
    kept = len(first.batches) - lost
    assert trainer.global_step == expected_trainer.global_step
    assert trainer.current_epoch == expected_trainer.current_epoch
    assert first.batches[:kept] + second.batches == trace.batches
    assert first.rates[:kept] + second.rates == trace.rates
    for name, value in expected.state_dict().items():
        assert torch.equal(value, task.state_dict()[name]), name


@pytest.mark.parametrize("stop_after", [2, BATCHES, BATCHES + 3])
def test_sigterm(tmp_path: Path, uninterrupted: Any, stop_after: int) -> None:
    first, second = Trace(stop_after), Trace()
    with pytest.raises(SIGTERMException):
        run(tmp_path, first)
    assert_same(uninterrupted, first, second, *run(tmp_path, second, tmp_path / "last.ckpt"), lost=0)


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 10, "check_val_every_n_epoch": 2},
        {"num_workers": 1, "val_check_interval": 0.5, "accumulate_grad_batches": 2},
        {"limit_val_batches": 0},
    ],
    ids=str,
)
def test_sigterm_elsewhere(tmp_path: Path, options: dict[str, Any]) -> None:
    trace, first, second = Trace(), Trace(BATCHES), Trace()
    whole = trace, *run(tmp_path / "whole", trace, **options)
    with pytest.raises(SIGTERMException):
        run(tmp_path, first, **options)
    assert_same(whole, first, second, *run(tmp_path, second, tmp_path / "last.ckpt", **options), lost=0)


@pytest.mark.usefixtures("slow_loss")
def test_sigterm_with_kar3_and_auxiliary_losses(tmp_path: Path) -> None:
    options: dict[str, Any] = {"opt": "kar3", "l2_penalty": 1e-4, "accumulate_grad_batches": 2, "gradient_clip_val": 1}
    trace, first, second = Trace(), Trace(BATCHES), Trace()
    whole = trace, *run(tmp_path / "whole", trace, **options)
    assert {"train_loss_ce", "train_loss_slow", "train_loss_l2"} <= set(whole[1].callback_metrics)
    with pytest.raises(SIGTERMException):
        run(tmp_path, first, **options)
    assert_same(whole, first, second, *run(tmp_path, second, tmp_path / "last.ckpt", **options), lost=0)


def test_gradients_that_were_not_applied_are_computed_again(tmp_path: Path) -> None:
    first, second = Trace(3), Trace()
    with pytest.raises(SIGTERMException):
        run(tmp_path, first, accumulate_grad_batches=2)
    trainer, _ = run(tmp_path, second, tmp_path / "last.ckpt", accumulate_grad_batches=2)
    assert second.batches[0] == first.batches[2]
    assert trainer.global_step == 3 * BATCHES // 2


def test_interrupted_validation_is_made_up_for(tmp_path: Path) -> None:
    with pytest.raises(SIGTERMException):
        run(tmp_path, Trace(BATCHES))
    assert not (tmp_path / "best.ckpt").exists()
    trainer, _ = run(tmp_path, Trace(), tmp_path / "last.ckpt", max_epochs=1)
    assert trainer.global_step == BATCHES
    assert (tmp_path / "best.ckpt").exists()


@pytest.mark.parametrize(("stop_after", "every", "lost"), [(7, 0, 3), (7, 2, 1), (BATCHES + 1, 2, 1)])
def test_kill(tmp_path: Path, uninterrupted: Any, stop_after: int, every: int, lost: int) -> None:
    first, second = Trace(stop_after, by="kill"), Trace()
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, first, every=every)
    assert_same(uninterrupted, first, second, *run(tmp_path, second, tmp_path / "last.ckpt", every=every), lost=lost)
