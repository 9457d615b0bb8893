"""Training for re-identification: losses, necks, what is measured, what a checkpoint holds."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F

from tests.tasks.trainers import assert_killed_run_resumes, create_trainer
from visionattn.data import ReidData
from visionattn.losses.triplet import BatchHardTripletLoss
from visionattn.metrics.gallery import Gallery, divide, measure, merge, rank
from visionattn.metrics.retrieval import evaluate_retrieval
from visionattn.tasks.reid import ReidTask
from visionattn.training import load_checkpoint
from visionattn.training.branches import choose_inference
from visionattn.training.checkpoints.callbacks import BestCheckpoint

MODEL = "test_resnet"
DCAL: dict[str, Any] = {
    "name": "dcal_vit_pico",
    "model_kwargs": {"img_size": [64, 32], "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
}


def identities(eval_batch_size: int = 64) -> ReidData:
    return ReidData("identities", batch_size=16, eval_batch_size=eval_batch_size, num_workers=0, seed=0)


def trainer(folder: Path | None = None, **options: Any) -> Trainer:
    callbacks = [] if folder is None else [BestCheckpoint(folder, "val_mAP")]
    return create_trainer(folder, callbacks, **{"limit_train_batches": 2, **options})


def fit(task: ReidTask, folder: Path | None = None, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    run = trainer(folder, **options)
    run.fit(task, datamodule=identities(), ckpt_path=ckpt_path)
    return run


def losses(run: Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in run.callback_metrics.items() if name.startswith("train_loss")}


def test_plain_model_logs_its_losses_separately() -> None:
    found = losses(fit(ReidTask(MODEL, center_weight=0.01), limit_train_batches=1, limit_val_batches=0))
    assert set(found) == {"train_loss", "train_loss_ce", "train_loss_triplet", "train_loss_center"}
    assert found["train_loss"] == pytest.approx(sum(found.values()) - found["train_loss"], rel=1e-5)
    found = losses(fit(ReidTask(MODEL, triplet_weight=0), limit_train_batches=1, limit_val_batches=0))
    assert set(found) == {"train_loss"}


def test_losses_are_taken_before_and_behind_the_neck() -> None:
    task = ReidTask(**DCAL, lr=1e-12, weight_decay=0)
    expected: dict[str, float] = {}
    original = task.training_step

    def step(batch: Any, batch_idx: int) -> Any:
        state = torch.get_rng_state()
        model: Any = task.model
        for name, branch in model.forward_branches(batch.image, torch.randperm(len(batch.image))).items():
            neck: Any = task.necks["sa" if name == "pwca" else name]
            logits = neck.classifier(F.batch_norm(branch.features, None, None, training=True))
            loss = F.cross_entropy(logits, batch.target) + BatchHardTripletLoss()(branch.features, batch.target)
            expected[name] = loss.item()
        torch.set_rng_state(state)
        return original(batch, batch_idx)

    task.training_step = step  # type: ignore[method-assign]
    found = losses(fit(task, limit_train_batches=1, limit_val_batches=0))
    assert list(expected) == ["sa", "glca", "pwca"]
    for name, loss in expected.items():
        assert found[f"train_loss_{name}"] == pytest.approx(loss, rel=1e-3)
    assert found["train_loss"] == pytest.approx(sum(expected.values()) / 2, rel=1e-3)
    assert set(task.necks) == {"sa", "glca"}
    assert task.spec.num_classes == 0


def test_biases_learn_faster_and_other_modules_learn() -> None:
    task = ReidTask(MODEL, opt="sgd", lr=0.1, bias_lr_factor=2, weight_decay=0.01, sched="constant")
    groups = fit(task, limit_train_batches=1, limit_val_batches=0).optimizers[0].param_groups
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    trained = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(trained)
    for name, parameter in trained.items():
        group = found[id(parameter)]
        assert group["lr"] == pytest.approx(0.2 if name.endswith("bias") else 0.1), name
        assert group["weight_decay"] == (0.01 if parameter.ndim > 1 else 0), name
    assert "necks.all.classifier.weight" in trained


@pytest.mark.parametrize("flip", [False, True])
def test_validation_measures_features_before_the_neck(flip: bool) -> None:
    task, run, data = ReidTask(MODEL, flip=flip), trainer(), identities()
    (found,) = run.validate(task, datamodule=data, verbose=False)
    batches = [batch.to("cpu") for batch in data.val_dataloader()]
    image, ids, cameras = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("image", "target", "camera")
    )
    model: Any = task.model.eval()
    with torch.no_grad():
        features = model.forward_features(image).mean((2, 3))
        if flip:
            features += model.forward_features(image.flip(3)).mean((2, 3))
    query, gallery = slice(data.num_query), slice(data.num_query, None)
    expected = evaluate_retrieval(
        features[query], features[gallery], ids[query], ids[gallery], cameras[query], cameras[gallery]
    )
    assert found["val_mAP"] == pytest.approx(expected["mAP"], abs=1e-4)
    assert found["val_mINP"] == pytest.approx(expected["mINP"], abs=1e-4)
    for k in (1, 5, 10):
        assert found[f"val_rank{k}"] == pytest.approx(expected["cmc"][k - 1], abs=1e-6)


def test_branches_are_compared_together_or_alone(pairs: list[Any]) -> None:
    task = ReidTask(**DCAL)
    trainer().validate(task, datamodule=identities(), verbose=False)
    image = torch.randn(2, 3, 64, 32)
    both = task.eval()(image)
    choose_inference(task.model, DCAL["name"], "sa")
    torch.testing.assert_close(task(image), both[:, : both.shape[1] // 2])
    assert not pairs


def test_checkpoint_holds_the_backbone_and_its_task(tmp_path: Path) -> None:
    task = ReidTask(MODEL)
    run = fit(task, tmp_path)
    model, spec = load_checkpoint(tmp_path / "best.ckpt")
    assert (spec.task, spec.num_classes, spec.dataset) == ("reid", 0, "identities")
    assert spec.class_names == identities().class_names
    assert run.checkpoint_callbacks[0].best_model_score == run.callback_metrics["val_mAP"]  # type: ignore[attr-defined]
    image = torch.randn(2, 3, 64, 32)
    torch.testing.assert_close(model(image), task.eval()(image))


def test_killed_run_resumes_exactly(tmp_path: Path) -> None:
    def create() -> ReidTask:
        torch.manual_seed(0)
        return ReidTask(**DCAL, lr=1e-3, center_weight=0.01, bias_lr_factor=2, sched="constant")

    assert_killed_run_resumes(create, partial(fit, limit_val_batches=0), tmp_path)


def test_queries_without_a_gallery_are_not_measured() -> None:
    run = trainer(limit_train_batches=1, limit_val_batches=1)
    with pytest.warns(UserWarning, match="limit_val_batches 1 leaves nothing to measure"):
        run.fit(ReidTask(MODEL), datamodule=identities(eval_batch_size=8))
    assert math.isnan(run.callback_metrics["val_mAP"])


def test_sanity_check_measures_nothing_and_leaves_nothing() -> None:
    task = ReidTask(MODEL)
    run = fit(task, limit_train_batches=1, num_sanity_val_steps=1, check_val_every_n_epoch=2)
    assert "val_mAP" not in run.callback_metrics
    assert not task._seen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"triplet_weight": -1}, "triplet_weight must be at least 0, got -1"),
        ({"smoothing": 1.0}, r"smoothing must lie in \[0, 1\), got 1.0"),
        ({"bias_lr_factor": 0}, "bias_lr_factor must be greater than 0, got 0"),
        ({"name": "resnet5"}, "unknown model 'resnet5'"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReidTask(**options)


def images(place: list[int], features: list[list[float]]) -> Gallery:
    zeros = torch.zeros(len(place), dtype=torch.long)
    return Gallery(torch.tensor(place), torch.tensor(features), zeros, zeros)


def test_merged_parts_have_the_order_of_the_split() -> None:
    whole = merge([images([4, 0], [[4.0], [0.0]]), images([], []), images([1, 3], [[1.0], [3.0]])])
    assert whole.place.tolist() == [0, 1, 3, 4]
    assert whole.features.flatten().tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("reranked", [False, True])
def test_first_ranks_leave_out_the_same_images_as_the_measures(reranked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.arange(46)
    ids, cameras = (torch.randint(high, (46,), generator=generator) for high in (4, 3))
    found = Gallery(places, torch.randn(46, 8, generator=generator), ids, cameras)
    query, gallery = divide(found, 6)
    assert len(query.place) == 6
    expected = measure(found, 6, "camera", reranked=reranked)
    ranked = rank(query, gallery, range(6), 40, reranked=reranked)
    for number, (order, matches) in enumerate(ranked):
        left_out = (gallery.ids == query.ids[number]) & (gallery.cameras == query.cameras[number])
        assert sorted(order.tolist()) == (~left_out).nonzero().flatten().tolist()
        assert torch.equal(matches, gallery.ids[order] == query.ids[number])
    for k in (1, 3, 5):
        assert expected["cmc"][k - 1] == pytest.approx(sum(bool(m[:k].any()) for _, m in ranked) / 6)
    assert [len(order) for order, _ in rank(query, gallery, [2, 5], 3)] == [3, 3]


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="not one image"):
        merge([images([], [])])
    with pytest.raises(ValueError, match="nothing to re-rank"):
        measure(images([0, 1], [[0.0], [1.0]]), 0, "vehicleid", reranked=True)
