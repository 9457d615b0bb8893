"""Object discovery: what is minimised and measured, what is frozen, what comes of the checkpoint, and the commands."""

import csv
import json
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.nn import functional as F

from tests.tasks.trainers import assert_killed_run_resumes, create_trainer
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main as evaluate
from visionattn.cli.train import main as train
from visionattn.data import ImageClassificationData
from visionattn.data.scenes import SceneData
from visionattn.metrics.object_discovery import foreground_ari
from visionattn.models.slots import SlotAutoencoder, encode
from visionattn.tasks.classification import ClassificationTask
from visionattn.tasks.object_discovery import SLOTS, ObjectDiscoveryTask, load_slots
from visionattn.training import load_checkpoint

CNN: dict[str, Any] = {"embed_dims": [8, 8], "kernel_sizes": [5, 3], "strides": [2, 2]}
VIT: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL: dict[str, Any] = {"num_slots": 4, "slot_dim": 8, "decoder_dim": 8}
FAST: dict[str, Any] = {"decoder_grid": 4, "decoder_strides": (1,), "decoder_kernel": 1, "decoder_patch": 2}
STEADY: dict[str, Any] = {"lr": 1e-12, "weight_decay": 0, "sched": "constant"}


def create(**options: Any) -> ObjectDiscoveryTask:
    return ObjectDiscoveryTask(**{"model_kwargs": CNN, **SMALL, **FAST, "opt": "adam", "lr": 1e-2, **options})


def dinosaur(**options: Any) -> ObjectDiscoveryTask:
    vit = {"name": "vit_pico_patch4_32", "method": "dinosaur", "model_kwargs": VIT}
    return create(**{**vit, **options})


def fit(
    task: Any, folder: Path | None = None, resume: Path | None = None, ema: bool = False, **options: Any
) -> Trainer:
    averaging = [EMAWeightAveraging(decay=0.5)] if ema else []
    trainer = create_trainer(folder, averaging, every_n_steps=2, **options)
    data = SceneData(image_size=16, length=12, val_length=8, batch_size=4, num_workers=0, seed=0)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    return trainer


def scenes(task: Any) -> Any:
    (first, second) = (batch.to("cpu") for batch in task.data.val_dataloader())
    return first, second


# Steps


def test_loss_uses_the_image_and_scores_use_the_masks() -> None:
    task = create(**STEADY)
    metrics = fit(task, limit_train_batches=1).callback_metrics
    assert {name for name in metrics if name.startswith("val")} == {
        *("val_loss", "val_fg_ari", "val_ari", "val_mbo_i", "val_mbo_c", "val_corloc")
    }
    assert {name for name in metrics if name.startswith("train")} == {"train_loss"}
    task.eval()
    losses, scores = [], []
    with torch.no_grad():
        for batch in scenes(task):
            found = task(batch.image)
            drawn = torch.einsum("bkhw,bkchw->bchw", found.masks, found.parts)
            losses.append(F.mse_loss(drawn, F.avg_pool2d(batch.image, 2)))
            masks = F.interpolate(found.masks, scale_factor=2, mode="bilinear")
            scores.append(foreground_ari(masks.argmax(1), batch.segments, batch.things))
    torch.testing.assert_close(metrics["val_loss"], torch.stack(losses).mean())
    torch.testing.assert_close(metrics["val_fg_ari"].double(), torch.cat(scores).nanmean(), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:the frozen")
def test_dinosaur_rebuilds_features_of_a_frozen_encoder() -> None:
    task = dinosaur()
    trainer = fit(task, max_epochs=2)
    encoder: Any = task.model
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    task.train()
    assert not encoder.training
    assert task.slots.training
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"] if p.requires_grad}
    assert optimized == {id(p) for p in task.slots.parameters()}
    task.eval()
    losses = []
    with torch.no_grad():
        for batch in scenes(task):
            features = encoder.forward_features(batch.image)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
            found = task(batch.image)
            losses.append(F.mse_loss((found.masks[:, :, None] * found.parts).sum(1), features))
    torch.testing.assert_close(trainer.callback_metrics["val_loss"], torch.stack(losses).mean())
    assert "rebuilt" not in task.examples.tensors()


def test_frozen_encoder_without_weights_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the frozen vit_pico_patch4_32 has random weights"):
        fit(dinosaur(), limit_train_batches=1, limit_val_batches=0)
    torch.manual_seed(3)
    plain = timm.create_model("vit_pico_patch4_32", **VIT)
    torch.save(plain.state_dict(), tmp_path / "vit.pth")
    task = dinosaur(checkpoint_path=str(tmp_path / "vit.pth"))
    fit(task, limit_train_batches=1, limit_val_batches=0)
    plain.reset_classifier(0)  # type: ignore[operator]
    torch.testing.assert_close(task.model.state_dict(), plain.state_dict())  # type: ignore[union-attr]


def test_slots_are_a_function_of_the_step_and_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = SlotAutoencoder.forward

    def forward(self: SlotAutoencoder, *args: Any) -> Any:
        found = original(self, *args)
        seen.append(found.slots.detach())
        torch.rand(len(seen))  # whatever else is drawn
        return found

    monkeypatch.setattr(SlotAutoencoder, "forward", forward)
    for _ in range(2):
        torch.manual_seed(1)
        fit(create(), limit_val_batches=0)
    assert len(seen) == 6
    torch.testing.assert_close(seen[:3], seen[3:])


def test_killed_run_resumes_exactly(tmp_path: Path) -> None:
    assert_killed_run_resumes(create, fit, tmp_path)


# Checkpoints


def test_checkpoint_is_an_encoder_and_slots(tmp_path: Path) -> None:
    task = create(guided=True, slot_init="learned", implicit=True)
    fit(task, tmp_path)
    encoder, slots, spec = load_slots(tmp_path / "last.ckpt")
    assert (spec.task, spec.model, spec.num_classes, spec.dataset) == (
        "object_discovery",
        "slot_cnn_pico",
        0,
        "synthetic",
    )
    image = scenes(task)[0].image
    task.eval()
    torch.testing.assert_close(tuple(slots(encode(encoder, image))), tuple(task(image)))
    alone, _ = load_checkpoint(tmp_path / "last.ckpt")
    torch.testing.assert_close(alone.state_dict(), encoder.state_dict())
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in held} == {"model", "slots"}


def test_average_and_raw_weights_differ(tmp_path: Path) -> None:
    fit(create(), tmp_path, ema=True)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    average, raw = (load_slots(tmp_path / "last.ckpt", weights)[1] for weights in ("average", "raw"))  # type: ignore[arg-type]
    key = "decoder.layers.0.weight"
    torch.testing.assert_close(average.state_dict()[key], checkpoint["state_dict"][f"slots.{key}"])
    torch.testing.assert_close(raw.state_dict()[key], checkpoint["current_model_state"][f"slots.{key}"])
    assert not torch.equal(average.state_dict()[key], raw.state_dict()[key])


def test_classifier_is_fine_tuned_from_the_slots_encoder(tmp_path: Path) -> None:
    source = create()
    fit(source, tmp_path, limit_val_batches=0)
    task = ClassificationTask("slot_cnn_pico", model_kwargs=CNN, checkpoint_path=str(tmp_path / "last.ckpt"), **STEADY)
    trainer = create_trainer(max_steps=1)
    trainer.fit(task, datamodule=ImageClassificationData(batch_size=4, num_workers=0))
    own, theirs = task.model.state_dict(), source.model.state_dict()  # type: ignore[union-attr]
    assert own.keys() - theirs.keys() == {"head.fc.weight", "head.fc.bias"}
    for name, value in theirs.items():
        torch.testing.assert_close(own[name], value)


def test_examples_are_images_of_the_validation() -> None:
    task = create()
    fit(task, limit_train_batches=1)
    image, segments, slots, rebuilt = task.examples.tensors().values()
    batches = scenes(task)
    assert torch.equal(image, torch.cat([batch.image for batch in batches]))
    assert torch.equal(segments, torch.cat([batch.segments for batch in batches]))
    assert slots.shape == (8, 16, 16)
    assert rebuilt.shape == (8, 3, 8, 8)


def test_options_and_defaults_match_the_autoencoder() -> None:
    task, autoencoder = (signature(kind).parameters for kind in (ObjectDiscoveryTask, SlotAutoencoder))
    assert {name: task[name].default for name in SLOTS} == {name: autoencoder[name].default for name in SLOTS}


class Blind(nn.Module):
    num_classes = 0


@pytest.mark.filterwarnings("ignore:the frozen")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": 0}, "num_slots must be at least 1, got 0"),
        (
            {"name": "vit_pico_patch4_32", "model_kwargs": {**VIT, "img_size": 20}},
            r"vit_pico_patch4_32 does not take images of 16×16 pixels \(.+\): pass --data.image_size N, or",
        ),
        ({"name": "sequencer2d_s", "model_kwargs": {}}, "sequencer2d_s gives no maps of features"),
    ],
    ids=str,
)
def test_impossible_options_are_named(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = create(**options)
    if options.get("name") == "sequencer2d_s":
        monkeypatch.setattr(task, "_create", lambda num_classes: Blind())
    with pytest.raises(ValueError, match=message):
        fit(task)


# The commands

QUICK = [
    "--task=object_discovery",
    f"--model.model_kwargs={CNN}",
    "--model.guided=true",
    *(f"--model.{key}={list(value) if isinstance(value, tuple) else value}" for key, value in (SMALL | FAST).items()),
    *("--data.image_size=16", "--data.length=8", "--data.val_length=8", "--data.batch_size=4", "--data.num_workers=0"),
    *("--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.num_sanity_val_steps=0"),
]
RUN = Path("runs/slot_cnn_pico/0")


def test_discover_evaluates_the_checkpoint_of_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(train, ["fit", *QUICK, "--trainer.max_epochs=2"]) == 0
    told = capsys.readouterr().out
    with (RUN / "metrics.csv").open() as file:
        best = max(float(row["val_fg_ari"]) for row in csv.DictReader(file) if row["val_fg_ari"])
    assert f"best val FG-ARI {100 * best:.2f}%, 2 epochs" in told
    assert f"eval.py discover --checkpoint {RUN}/checkpoints/best.ckpt --data.name synthetic" in told
    assert {"slots-best.png", "slots-last.png", "curve.png"} < {path.name for path in RUN.iterdir()}
    assert run(train, ["validate", *QUICK, f"--ckpt_path={RUN}/checkpoints/best.ckpt"]) == 0
    assert f"{best:.4f}" in capsys.readouterr().out
    words = ["discover", f"--checkpoint={RUN}/checkpoints/best.ckpt", "--data.limit=8", "--data.num_workers=0"]
    words += ["--data.batch_size=3", "--output=r.json", "--csv=r.csv", "--examples=drawn", "--num_examples=2"]
    assert run(evaluate, [*words, "--device=cpu"]) == 0
    table = capsys.readouterr().out
    assert "slot_attention on slot_cnn_pico, 8 scenes of synthetic" in table
    result = json.loads(Path("r.json").read_text())
    assert result["fg_ari"] == pytest.approx(best, abs=1e-6)
    assert (result["num_images"], result["num_slots"], result["num_unreadable"]) == (8, 4, 0)
    assert f"{result['mbo_i']:.2%}" in table
    blocks, random = result["baselines"]
    assert abs(random["fg_ari"]) < 0.05
    assert blocks["fg_ari"] > random["fg_ari"]
    with Path("r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["segments"] for row in rows] == ["slots", "blocks", "random"]
    assert list(rows[0]) == ["segments", "fg_ari", "ari", "mbo_i", "mbo_c", "corloc"]
    assert float(rows[0]["ari"]) == pytest.approx(result["ari"])
    assert Path("drawn/slots.png").is_file()


def test_wrong_checkpoints_and_options_are_one_line(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(create(), tmp_path, limit_val_batches=0)
    for command, argv, message in [
        (evaluate, ["classify", "--checkpoint=last.ckpt", "--device=cpu"], "is a pretrained encoder, without classes"),
        (
            evaluate,
            ["discover", f"--checkpoint={checkpoint}", "--device=cpu"],
            "--task classification, it has no slots",
        ),
        (evaluate, ["discover", "--checkpoint=last.ckpt", "--data.name=ade20k"], "ade20k needs --data.root FOLDER"),
        (
            evaluate,
            ["discover", "--checkpoint=last.ckpt", "--num_examples=0"],
            "--num_examples must be at least 1, got 0",
        ),
        (
            train,
            ["fit", *QUICK, "--model.opt=adam", "--ckpt_path=last.ckpt", "--model.num_slots=5"],
            "last.ckpt holds other slots",
        ),
    ]:
        assert run(command, argv) != 0
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
