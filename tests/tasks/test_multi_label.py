"""Training on images with several labels, and on classes with few images."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score
from torch import Tensor
from torch.nn import functional as F

from tests.tasks.trainers import create_trainer
from visionattn.data import ImageClassificationData
from visionattn.losses.classification import class_weights, positive_weights
from visionattn.tasks import ClassificationTask
from visionattn.training import load_checkpoint
from visionattn.training.checkpoints.callbacks import BestCheckpoint
from visionattn.training.checkpoints.spec import METADATA_KEY, ModelSpec

MODEL = "test_resnet"
CLASSES = ("absent", "blue", "green", "rare", "red")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images of every mix of three colours, and a table of these and of two other classes."""
    folder = tmp_path_factory.mktemp("labels")
    rows = []
    for number in range(24):
        bits = [number >> place & 1 for place in range(3)]
        Image.new("RGB", (32, 32), tuple(255 * bit for bit in bits)).save(folder / f"{number}.png")
        red, green, blue = bits
        labels = [0, blue, green, int(number in (3, 20)), red]
        rows.append([f"{number}.png", *labels, "train" if number < 16 else "val"])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", *CLASSES, "split"], *rows])
    return folder / "labels.csv"


def open_data(table: Path, **options: Any) -> ImageClassificationData:
    prepared = {"img_size": 32, "batch_size": 8, "num_workers": 0, "seed": 0, "no_aug": True}
    return ImageClassificationData(labels=str(table), **{**prepared, **options})


def fit(
    task: ClassificationTask, data: Any, folder: Path | None = None, resume: Path | None = None, **options: Any
) -> Trainer:
    callbacks = [] if folder is None else [BestCheckpoint(folder)]
    trainer = create_trainer(folder, callbacks, **options)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    return trainer


def answers(task: ClassificationTask) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and targets of the validation images, batch by batch."""
    task.eval()
    for batch in task.data.val_dataloader():
        with torch.no_grad():
            yield task(batch.image), batch.target


def test_validation_measures_labels(table: Path) -> None:
    torch.manual_seed(0)
    task = ClassificationTask(MODEL, lr=0.01)
    found = fit(task, open_data(table), max_epochs=2).callback_metrics
    logits, target = (torch.cat(parts) for parts in zip(*answers(task), strict=True))
    probability, occur = logits.sigmoid(), [1, 2, 3, 4]
    assert found["val_loss"].item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, target).item())
    expected = sum(average_precision_score(target[:, k], probability[:, k]) for k in occur) / 4
    assert found["val_map"].item() == pytest.approx(expected)
    given = probability > 0.5
    expected = sum(f1_score(target[:, k], given[:, k], zero_division=0) for k in occur) / 4
    assert found["val_f1"].item() == pytest.approx(expected)
    assert found["val_f1_micro"].item() == pytest.approx(f1_score(target, given, average="micro", zero_division=0))
    assert "val_top1" not in found


def test_best_checkpoint_is_chosen_by_mean_average_precision_and_says_so(table: Path, tmp_path: Path) -> None:
    task = ClassificationTask(MODEL, lr=0.01)
    trainer = fit(task, open_data(table), tmp_path, max_epochs=2)
    best: Any = trainer.checkpoint_callbacks[0]
    assert best.monitor == "val_map"
    assert task.describe_score(0.5) == "mAP 50.00%"
    assert task.shown == ("val_loss", "val_map")
    assert load_checkpoint(tmp_path / "best.ckpt")[1].multi_label
    assert load_checkpoint(tmp_path / "best.ckpt", model_name=MODEL)[1].multi_label
    assert load_checkpoint(tmp_path / "best.ckpt", model_name=MODEL)[1].class_names == list(CLASSES)


def test_training_resumes_with_another_balance(table: Path, tmp_path: Path) -> None:
    fit(ClassificationTask(MODEL), open_data(table, balance="weights"), tmp_path)
    trainer = fit(ClassificationTask(MODEL), open_data(table), resume=tmp_path / "last.ckpt", max_epochs=2)
    assert trainer.global_step == 4


def test_checkpoint_without_the_field_has_one_label(table: Path, tmp_path: Path) -> None:
    fit(ClassificationTask(MODEL), open_data(table), tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del checkpoint[METADATA_KEY]["multi_label"]
    assert not ModelSpec.from_dict(checkpoint[METADATA_KEY]).multi_label
    with pytest.raises(ValueError, match="has multi_label 'yes'"):
        ModelSpec.from_dict({**checkpoint[METADATA_KEY], "multi_label": "yes"})
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match="another architecture: multi_label False, here True"):
        fit(ClassificationTask(MODEL), open_data(table), resume=tmp_path / "old.ckpt", max_epochs=2)


def test_softmax_of_several_labels_is_refused(table: Path) -> None:
    with pytest.raises(ValueError, match=r"--model.loss ce is for one label per image.*: leave it out, or pass bce"):
        fit(ClassificationTask(MODEL, loss="ce"), open_data(table))


@pytest.mark.parametrize("option", ["smoothing", "mixup", "cutmix"])
def test_focal_loss_of_softened_labels_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"--model.loss focal wants labels .*: leave out --model.{option}"):
        ClassificationTask(MODEL, loss="focal", **{option: 0.1})


def seen_by_the_loss(task: ClassificationTask, data: ImageClassificationData) -> Iterator[tuple[Tensor, Tensor]]:
    """Train for an epoch, and yield the logits and targets of every batch."""
    seen: list[tuple[Tensor, Tensor]] = []
    task.on_train_start = lambda: task.criterion.register_forward_pre_hook(  # type: ignore[method-assign, assignment]
        lambda _, inputs: seen.append(inputs)
    )
    fit(task, data, limit_val_batches=0)
    return iter(seen)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_labels_are_shares_of_both_images(table: Path, kind: str) -> None:
    task = ClassificationTask(MODEL, num_classes=7, lr=1e-12, **{kind: 1.0})
    _, target = next(seen_by_the_loss(task, open_data(table)))
    assert target.shape == (8, 7), "the head is wider than the data"
    assert not target[:, 5:].any()
    shares = [sorted({round(value, 5) for value in row.tolist()} - {0.0, 1.0}) for row in target]
    assert any(shares), "no label was mixed"
    for row, share, other in zip(target, shares, target.flip(0), strict=True):
        assert len(share) <= 2
        # What one image of a pair has of both, the other has of both, up to the share.
        assert ((row > 0) == (other > 0)).all()


def test_rare_classes_weigh_more(table: Path) -> None:
    several = ClassificationTask(MODEL)
    fit(several, open_data(table, balance="weights"), limit_val_batches=0)
    counts = torch.tensor([0, 8, 8, 1, 8])
    torch.testing.assert_close(several.criterion.pos_weight, positive_weights(counts, 16))
    one = ClassificationTask(MODEL, num_classes=12)
    data = ImageClassificationData(img_size=32, batch_size=8, num_workers=0, balance="weights")
    fit(one, data, limit_train_batches=1, limit_val_batches=0)
    digits = F.pad(data.class_counts(), (0, 2))
    torch.testing.assert_close(one.criterion.weight, class_weights(digits))
    plain = ClassificationTask(MODEL)
    fit(plain, open_data(table), limit_train_batches=1, limit_val_batches=0)
    assert plain.criterion.pos_weight is None


def test_balanced_accuracy_is_measured() -> None:
    task = ClassificationTask(MODEL, loss="focal")
    data = ImageClassificationData(img_size=32, batch_size=64, num_workers=0)
    found = fit(task, data, limit_train_batches=3, limit_val_batches=2).callback_metrics
    batches = [(logits.argmax(1), target) for (logits, target), _ in zip(answers(task), range(2), strict=False)]
    predicted, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert found["val_balanced_top1"].item() == pytest.approx(balanced_accuracy_score(target, predicted))


def test_prediction_has_every_probable_label(table: Path) -> None:
    task = ClassificationTask(MODEL)
    trainer = fit(task, open_data(table), limit_train_batches=1)
    task.starts_from = task.spec
    with torch.no_grad():
        task.model.fc.weight.zero_()  # type: ignore[union-attr, operator]
        task.model.fc.bias.copy_(torch.tensor([-3.0, 0.0, 1.0, 2.0, -1.0]))  # type: ignore[union-attr, operator]
    data = ImageClassificationData(root=str(table.parent), img_size=32, batch_size=64, num_workers=0)
    (found,) = trainer.predict(task, datamodule=data)  # type: ignore[misc]
    assert len(found) == 24
    assert {tuple(prediction.labels) for prediction in found} == {("blue", "green", "rare")}
    assert found[0].classes == ["rare"]
    assert found[0].probabilities == pytest.approx([torch.tensor(2.0).sigmoid().item()])
