"""The task: heads, freezing, parameter groups, schedules, divergence, what a checkpoint holds."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from tests.tasks.trainers import create_trainer
from visionattn.data import ImageClassificationData
from visionattn.tasks import ClassificationTask, DivergenceError
from visionattn.tasks.fine_grained import FineGrainedTask
from visionattn.training import load_checkpoint
from visionattn.training.checkpoints.callbacks import AtomicCheckpointIO
from visionattn.training.objective import decayed_weights

MODEL = "test_resnet"


def fit(task: ClassificationTask, folder: Path | None = None, **options: Any) -> Trainer:
    defaults = {"limit_train_batches": 4, "limit_val_batches": 1}
    trainer = create_trainer(folder, every_n_steps=1, **{**defaults, **options})
    data = ImageClassificationData(batch_size=4, img_size=32, num_workers=0, seed=0)
    trainer.fit(task, datamodule=data)
    return trainer


def rates(task: ClassificationTask, **options: Any) -> list[float]:
    """Learning rate of each update."""
    seen: list[float] = []
    task.on_train_batch_end = lambda *args: None  # type: ignore[method-assign]
    original = task.training_step

    def step(batch: Any, batch_idx: int) -> Any:
        seen.append(task.trainer.optimizers[0].param_groups[0]["lr"])
        return original(batch, batch_idx)

    task.training_step = step  # type: ignore[method-assign]
    fit(task, limit_val_batches=0, **options)
    return seen


def losses(trainer: Trainer) -> dict[str, float]:
    metrics = trainer.callback_metrics
    return {key.removeprefix("train_loss"): metrics[key].item() for key in metrics if key.startswith("train_loss")}


@pytest.mark.usefixtures("slow_loss")
def test_auxiliary_losses_are_logged_separately() -> None:
    task = ClassificationTask(MODEL, l2_penalty=1e-3)
    weights: dict[str, torch.Tensor] = {}
    task.on_train_start = lambda: weights.update(  # type: ignore[method-assign]
        {name: value.detach().clone() for name, value in task.model.named_parameters()}
    )
    found = losses(fit(task, limit_train_batches=1))
    assert set(found) == {"", "_ce", "_slow", "_l2"}
    assert found["_slow"] == pytest.approx(weights["fc.weight"].square().mean().item() / 10)
    norms = [weight.norm().item() for weight in weights.values() if weight.ndim > 1]
    assert found["_l2"] == pytest.approx(1e-3 * sum(norms))
    assert found[""] == pytest.approx(found["_ce"] + found["_slow"] + found["_l2"])


@pytest.mark.usefixtures("slow_loss")
def test_auxiliary_losses_are_minimised() -> None:
    task = ClassificationTask(MODEL, opt="momentum", lr=1.0, weight_decay=0, l2_penalty=0.5)
    weights: dict[str, torch.Tensor] = {}

    class Nothing(nn.Module):
        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return 0 * logits.sum()

    def begin() -> None:
        weights.update({name: value.detach().clone() for name, value in task.model.named_parameters()})
        task.criterion = Nothing()

    task.on_train_start = begin  # type: ignore[method-assign]
    fit(task, limit_train_batches=1, limit_val_batches=0)
    for name, before in weights.items():
        gradient = 0.5 * before / before.norm() if before.ndim > 1 else torch.zeros_like(before)
        if name == "fc.weight":
            gradient += before / 5 / before.numel()
        torch.testing.assert_close(task.model.get_parameter(name), before - gradient, msg=name)


def test_l2_penalty_spares_tensors_without_weight_decay() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Linear(2, 4), nn.Linear(4, 2, bias=False))
    model.no_weight_decay = lambda: {"2.weight"}  # type: ignore[assignment]
    model[3].requires_grad_(False)
    assert [id(weight) for weight in decayed_weights(model)] == [id(model[0].weight)]


def test_models_without_auxiliary_losses_log_one_loss() -> None:
    assert set(losses(fit(ClassificationTask(MODEL), limit_train_batches=1))) == {""}


@pytest.mark.usefixtures("slow_loss")
def test_probed_backbone_has_no_auxiliary_losses() -> None:
    assert set(losses(fit(ClassificationTask(MODEL, linear_probe=True), limit_train_batches=1))) == {""}


def test_unknown_model_has_near_matches() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet5'.*resnet50"):
        ClassificationTask("resnet5")


def test_head_with_too_few_outputs_is_refused() -> None:
    with pytest.raises(ValueError, match="the data have 10 classes, the head only 4"):
        fit(ClassificationTask(MODEL, num_classes=4))


def test_head_may_be_wider_than_the_data() -> None:
    task = ClassificationTask(MODEL, num_classes=12)
    fit(task)
    assert task.spec.num_classes == 12


def test_fine_tuning_loads_all_weights_but_the_head(tmp_path: Path) -> None:
    source = timm.create_model(MODEL, num_classes=7)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    task = ClassificationTask(MODEL, checkpoint_path=str(tmp_path / "weights.pt"), lr=1e-12, weight_decay=0)
    fit(task, limit_train_batches=1, limit_val_batches=0)
    assert task.model is not None
    own, theirs = dict(task.model.named_parameters()), dict(source.named_parameters())
    different = {name for name in own if own[name].shape != theirs[name].shape}
    assert different == {"fc.weight", "fc.bias"}
    for name in set(own) - different:
        torch.testing.assert_close(own[name], theirs[name])


def test_linear_probe_leaves_weights_and_statistics_alone() -> None:
    torch.manual_seed(0)
    task = ClassificationTask(MODEL, linear_probe=True, lr=0.1)
    task.on_train_start = lambda: before.update(  # type: ignore[method-assign]
        {name: value.clone() for name, value in task.state_dict().items()}
    )
    before: dict[str, torch.Tensor] = {}
    fit(task)
    changed = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"model.fc.weight", "model.fc.bias"}


def test_layer_decay_and_weight_decay_groups() -> None:
    task = ClassificationTask(MODEL, layer_decay=0.5, weight_decay=0.1, lr=1e-3)
    groups = fit(task, limit_train_batches=1).optimizers[0].param_groups
    scales = {group["lr_scale"] for group in groups}
    assert max(scales) == 1
    assert len(scales) > 2
    for group in groups:
        assert group["lr"] == pytest.approx(group["lr_scale"] * max(other["lr"] for other in groups))
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim > 1 else 0)


def test_learning_rate_follows_the_images_per_update() -> None:
    task = ClassificationTask(MODEL, lr_base=0.256, sched="constant")
    assert rates(task, accumulate_grad_batches=2) == pytest.approx([0.256 * 4 * 2 / 256] * 4)
    with pytest.raises(ValueError, match="exclude each other"):
        ClassificationTask(MODEL, lr=0.1, lr_base=0.1)


def test_penalty_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match=r"--model.l2_penalty must be at least 0, got -1"):
        ClassificationTask(MODEL, l2_penalty=-1.0)


def test_warm_up_cosine_and_cool_down() -> None:
    task = ClassificationTask(MODEL, lr=1.0, warmup_epochs=1, warmup_lr=0.2, cooldown_epochs=1, min_lr=0.1)
    seen = rates(task, max_epochs=4)
    expected = [0.2, 0.4, 0.6, 0.8] + [0.1 + 0.45 * (1 + math.cos(math.pi * t / 12)) for t in range(4, 12)] + [0.1] * 4
    assert seen == pytest.approx(expected)


def test_schedule_per_epoch() -> None:
    task = ClassificationTask(MODEL, lr=1.0, sched_on_updates=False)
    assert rates(task, max_epochs=2) == pytest.approx([1.0] * 4 + [0.5] * 4)


def test_shortened_run_keeps_its_schedule() -> None:
    task = ClassificationTask(MODEL, lr=1.0, warmup_epochs=20, warmup_lr=0.0, cooldown_epochs=10)
    seen = rates(task, max_epochs=1, limit_train_batches=8)
    assert seen[:2] == pytest.approx([0.0, 0.5])
    assert max(seen) > 0.5
    assert seen[-2:] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_mixing_softens_targets_and_keeps_odd_batches() -> None:
    task = ClassificationTask(MODEL, mixup=0.8, cutmix=1.0, smoothing=0.1)
    data_targets: list[torch.Tensor] = []
    fit(task, limit_train_batches=1)
    task.log = lambda *args, **options: None  # type: ignore[assignment, method-assign]
    task.criterion.register_forward_pre_hook(lambda _, inputs: data_targets.append(inputs[1]))
    batch = next(iter(task.data.train_dataloader())).to("cpu")
    odd = batch._replace(image=batch.image[:3], target=batch.target[:3])
    for given in (batch, odd):
        task.training_step(given, 0)
    assert [target.shape for target in data_targets] == [(4, 10), (2, 10)]
    torch.testing.assert_close(data_targets[0].sum(1), torch.ones(4))


@pytest.mark.parametrize("mix", [0.0, 0.8])
def test_binary_cross_entropy(mix: float) -> None:
    assert fit(ClassificationTask(MODEL, loss="bce", mixup=mix)).global_step == 4


@pytest.mark.parametrize("kind", [ClassificationTask, FineGrainedTask])
@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.float32), ("64-true", torch.float64)])
def test_losses_are_computed_in_float32_at_least(
    kind: type[ClassificationTask], precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    original = nn.CrossEntropyLoss.forward

    def forward(self: nn.CrossEntropyLoss, x: Tensor, target: Tensor) -> Tensor:
        seen.add(x.dtype)
        return original(self, x, target)

    monkeypatch.setattr(nn.CrossEntropyLoss, "forward", forward)
    fit(kind("nat_pico", smoothing=0.1), precision=precision, limit_train_batches=1, limit_val_batches=0)
    assert seen == {dtype}


def test_adaptive_gradient_clipping_spares_the_head() -> None:
    task = ClassificationTask(MODEL, agc=1e-6, opt="sgd", lr=1.0, weight_decay=0)
    before: dict[str, torch.Tensor] = {}
    task.on_train_start = lambda: before.update(  # type: ignore[method-assign]
        {name: value.detach().clone() for name, value in task.named_parameters()}
    )
    fit(task, limit_train_batches=1, gradient_clip_val=None)
    moved = {name: (value - before[name]).norm().item() for name, value in task.named_parameters()}
    assert moved["model.fc.weight"] > 1e-3
    assert all(distance < 1e-3 for name, distance in moved.items() if ".fc." not in name)


def test_divergence_stops_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    task = ClassificationTask(MODEL, lr=1e-3)
    original = task.training_step

    def poisoned(batch: Any, batch_idx: int) -> Any:
        return original(batch._replace(image=batch.image * (math.nan if batch_idx == 2 else 1)), batch_idx)

    task.training_step = poisoned  # type: ignore[method-assign]
    with pytest.raises(DivergenceError, match=r"the loss became nan at step 2 \(epoch 0\).*last.ckpt"):
        fit(task, tmp_path)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_checkpoint_is_never_written_with_weights_that_are_not_finite(tmp_path: Path) -> None:
    task = ClassificationTask(MODEL, opt="sgd", lr=1e38, weight_decay=0)
    with pytest.raises(DivergenceError):
        fit(task, tmp_path)


def test_checkpoint_describes_its_model(tmp_path: Path) -> None:
    task = ClassificationTask(MODEL)
    fit(task, tmp_path)
    model, spec = load_checkpoint(tmp_path / "last.ckpt")
    assert (spec.model, spec.num_classes, spec.dataset) == (MODEL, 10, "digits")
    assert spec.class_names == [str(digit) for digit in range(10)]
    batch = next(iter(task.data.val_dataloader())).to("cpu")
    task.eval()
    torch.testing.assert_close(model(batch.image), task(batch.image))


@pytest.mark.parametrize("kind", ["not one", "cut short", "no checkpoint of ours"])
def test_bad_checkpoint_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    if kind == "not one":
        path.write_text("hello")
    elif kind == "cut short":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"x\.ckpt is not a checkpoint"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"pickle|local"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": lambda: None}, path)
    assert path.read_bytes() == before


def test_gradients_are_clipped_in_mixed_precision_by_an_optimizer_of_one_operator() -> None:
    trainer = fit(
        ClassificationTask(MODEL, lr=0.1), limit_train_batches=1, precision="bf16-mixed", gradient_clip_val=1.0
    )
    assert trainer.optimizers[0].param_groups[0]["fused"]
