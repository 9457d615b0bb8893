"""A run that resumes with other options has the learning rates that a straight run with them has from there on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.tasks.trainers import create_trainer
from visionattn.data import ImageClassificationData, ReidData
from visionattn.tasks import ClassificationTask, DivergenceError
from visionattn.tasks.masked_autoencoding import MaskedAutoencodingTask
from visionattn.tasks.reid import ReidTask
from visionattn.training.models import create_regularized

BATCHES = 3  # per epoch of 8 images each
Options = dict[str, Any]


class Rates(Callback):
    """Note the rate of each update."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def train(folder: Path, task: Any, data: Any, resume: Path | None = None, **options: Any) -> list[float]:
    """Train, and return the rate of each update."""
    rates = Rates()
    trainer = create_trainer(folder, [rates], **{"max_epochs": 2, "limit_val_batches": 0, **options})
    torch.manual_seed(0)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    return rates.seen


def classify(folder: Path, resume: Path | None = None, *, batch_size: int = 8, **given: Any) -> list[float]:
    trainer = {key: given.pop(key) for key in ("max_epochs", "max_steps", "accumulate_grad_batches") if key in given}
    task = ClassificationTask("test_resnet", **{"lr": 1e-3, **given})
    options: Options = {"img_size": 32, "num_workers": 0, "seed": 1, "limit_per_class": 3}  # 30 images
    data = ImageClassificationData(batch_size=batch_size, **options)
    limit = BATCHES * 8 // batch_size
    return train(folder, task, data, resume, limit_train_batches=limit, **trainer)


ONE: Options = {"max_epochs": 1}
CASES = {
    "per epoch": (ONE | {"sched_on_updates": False}, {"sched_on_updates": False}),
    "batch size": (ONE, {"batch_size": 4}),
}
MORE: dict[str, tuple[Options, Options]] = {
    "longer": ({}, {"max_epochs": 4}),
    "steps": ({"max_epochs": -1, "max_steps": 6}, {"max_epochs": -1, "max_steps": 12}),
    "accumulation": ({}, {"max_epochs": 4, "accumulate_grad_batches": 2}),
    "rate": ({}, {"max_epochs": 4, "lr": 1e-4}),
    "rate for a batch of 256": ({}, {"max_epochs": 4, "lr": None, "lr_base": 1e-2, "batch_size": 4}),
    "shape": ({}, {"max_epochs": 4, "sched": "poly"}),
    "warm-up": ({}, {"max_epochs": 8, "warmup_epochs": 3}),
    "cool-down": ({"cooldown_epochs": 1}, {"max_epochs": 4, "cooldown_epochs": 1, "min_lr": 1e-5}),
    "steps per epoch": ({"max_steps": 6}, {"max_epochs": -1, "max_steps": 12, "sched_on_updates": False}),
    "bias": ({"bias_lr_factor": 2.0}, {"max_epochs": 4, "bias_lr_factor": 3.0}),
    "layers": ({"layer_decay": 0.5}, {"max_epochs": 4, "layer_decay": 0.8}),
}


@pytest.mark.parametrize(
    ("first", "then"),
    [pytest.param(*case, id=name) for name, case in CASES.items()]
    + [pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in MORE.items()],
)
def test_rates_after_resuming_equal_an_uninterrupted_run(first: Options, then: Options, tmp_path: Path) -> None:
    classify(tmp_path, **first)
    with pytest.warns(UserWarning, match=r"the learning-rate schedule now spans \d+ (updates|epochs), as the opt"):
        resumed = classify(tmp_path, tmp_path / "last.ckpt", **then)
    straight = classify(tmp_path / "straight", **then)
    assert len(resumed) > 2
    assert resumed == pytest.approx(straight[-len(resumed) :], rel=1e-9)
    assert max(resumed) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reid", "mae"])
def test_rates_of_other_tasks_after_resuming(kind: str, tmp_path: Path) -> None:
    def run(folder: Path, resume: Path | None = None, **options: Any) -> list[float]:
        limits = {"limit_train_batches": BATCHES, **options}
        if kind == "reid":
            data = ReidData(batch_size=8, num_workers=0, height=32, width=16, seed=1)
            return train(folder, ReidTask("test_resnet", lr=1e-3, warmup_epochs=0.5), data, resume, **limits)
        images = ImageClassificationData(batch_size=8, img_size=32, num_workers=0, seed=1)
        return train(folder, MaskedAutoencodingTask(lr=1e-3, warmup_epochs=0.5), images, resume, **limits)

    run(tmp_path)
    resumed, straight = run(tmp_path, tmp_path / "last.ckpt", max_epochs=4), run(tmp_path / "straight", max_epochs=4)
    assert resumed == pytest.approx(straight[-len(resumed) :], rel=1e-9)
    assert max(resumed) > 1e-4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param({"opt": "sgd"}, "--model.opt adamw, not --model.opt sgd", id="optimizer"),
        pytest.param({"linear_probe": True}, "--model.linear_probe false, not", id="linear probe"),
        pytest.param({"layer_decay": 0.7}, "--model.layer_decay null, not --model.layer_decay 0.7", id="layers"),
        pytest.param({"bias_lr_factor": 2.0}, "--model.bias_lr_factor 1.0, not", id="biases"),
        pytest.param({"weight_decay": 0.0}, "--model.weight_decay 0.05, not", id="weight decay"),
        pytest.param({"opt_kwargs": {"amsgrad": True}}, 'null, not --model.opt_kwargs {"amsgrad": true}', id="flags"),
        pytest.param({"max_epochs": 1}, "trained for 2 epochs, more than --trainer.max_epochs 1: pass", id="epochs"),
        pytest.param({"max_steps": 3}, "trained for 6 steps, more than --trainer.max_steps 3: pass", id="steps"),
    ],
)
def test_options_that_do_not_fit_a_checkpoint_are_refused(
    change: Options, named: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"was trained with|has been trained for") as error:
        classify(tmp_path, trained, **change)
    assert named in str(error.value)
    assert "max_" in named or "start a new run from its weights with --model.checkpoint_path" in str(error.value)


@pytest.mark.slow
def test_new_run_starts_from_the_weights_that_another_optimizer_trained(trained: Path, tmp_path: Path) -> None:
    assert classify(tmp_path, opt="sgd", checkpoint_path=str(trained), max_epochs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    classify(folder)
    return folder / "last.ckpt"


@pytest.mark.parametrize("option", ["lr", "lr_base"])
def test_rate_of_zero_is_a_rate(option: str, tmp_path: Path) -> None:
    assert set(classify(tmp_path, max_epochs=1, **{"lr": None, option: 0.0})) == {0.0}


def test_advice_after_a_divergence_works(tmp_path: Path) -> None:
    classify(tmp_path, max_epochs=1)
    checkpoint = tmp_path / "last.ckpt"
    with pytest.raises(DivergenceError, match="became nan") as error:
        classify(tmp_path, checkpoint, opt="adamw", lr=1e36, max_epochs=3)
    advice = f"resume from the last good checkpoint with --ckpt_path {checkpoint} and a lower --model.lr"
    assert advice in str(error.value)
    rates = classify(tmp_path, checkpoint, lr=1e-4, max_epochs=3)
    assert 5e-5 < max(rates) <= 1e-4
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 3 * BATCHES


def test_advice_names_the_start_of_a_run_before_an_older_best_checkpoint() -> None:
    task: Any = ClassificationTask("test_resnet", lr=1e-3)
    best, last = SimpleNamespace(best_model_path="best.ckpt", last_model_path=""), SimpleNamespace(last_model_path="")
    task.trainer = SimpleNamespace(checkpoint_callbacks=[best, last], ckpt_path="start.ckpt")
    assert "--ckpt_path start.ckpt " in task.divergence.advice(task.trainer)
    last.last_model_path = "last.ckpt"
    assert "--ckpt_path last.ckpt " in task.divergence.advice(task.trainer)


def test_zero_stochastic_depth_is_a_value() -> None:
    for rate in (None, 0.0):
        swin = create_regularized(
            "swin_tiny_patch4_window7_224", {"drop_path_rate": rate}, depths=(1, 1), num_heads=(1, 2)
        )
        assert any(getattr(module, "drop_prob", 0) for module in swin.modules()) == (rate is None)


def test_zero_stochastic_depth_of_a_model_without_it() -> None:
    create_regularized("terminator_pico", {"drop_rate": 0.0, "drop_path_rate": 0.0}, num_classes=3)
    with pytest.raises(ValueError, match="takes no argument 'drop_path_rate'"):
        create_regularized("terminator_pico", {"drop_path_rate": 0.1}, num_classes=3)
