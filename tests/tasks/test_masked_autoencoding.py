"""Pretraining of a ViT: what is minimised, which patches are hidden when, and what comes of the checkpoint."""

import csv
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from tests.tasks.trainers import assert_killed_run_resumes, create_trainer
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main as evaluate
from visionattn.cli.train import main as train
from visionattn.data import ImageClassificationData
from visionattn.tasks.classification import ClassificationTask
from visionattn.tasks.masked_autoencoding import MaskedAutoencodingTask, fixed_noise
from visionattn.training import load_checkpoint

MODEL = "vit_pico_patch4_32"
KWARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
PATCHES = 16
DECODER: dict[str, Any] = {"decoder_dim": 16, "decoder_num_heads": 2}


def create(**options: Any) -> MaskedAutoencodingTask:
    return MaskedAutoencodingTask(**{"model_kwargs": KWARGS, **DECODER, "sched": "constant", **options})


def fit(task: Any, folder: Path | None = None, resume: Path | None = None, batch: int = 8, **options: Any) -> Trainer:
    defaults = {"limit_train_batches": 3, "limit_val_batches": 1}
    trainer = create_trainer(folder, every_n_steps=2, **{**defaults, **options})
    data = ImageClassificationData(batch_size=batch, img_size=32, num_workers=0, seed=0)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    return trainer


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Record the noise that hides patches, step by step."""
    original = MaskedAutoencodingTask._reconstruct
    seen: list[Tensor] = []

    def reconstruct(self: MaskedAutoencodingTask, image: Tensor, noise: Tensor) -> Any:
        seen.append(noise)
        return original(self, image, noise)

    monkeypatch.setattr(MaskedAutoencodingTask, "_reconstruct", reconstruct)
    return seen


def slow_loss(task: Any, image: Tensor, noise: Tensor) -> Tensor:
    """The same loss with attention masks, all tokens at their places, and loops."""
    model, decoder = task.model, task.decoder
    hidden = noise.argsort(1).argsort(1) >= PATCHES - round(0.75 * PATCHES)
    seen = torch.cat([torch.ones(len(image), 1, dtype=torch.bool), ~hidden], 1)
    tokens = decoder.embed(model.forward_features(image, attn_mask=seen[:, None, None]))
    patches = torch.where(hidden[..., None], decoder.mask_token, tokens[:, 1:]) + decoder.position
    predicted = decoder.pixels(decoder.norm(decoder.blocks(torch.cat([tokens[:, :1], patches], 1))))[:, 1:]
    errors = []
    for number, place in hidden.nonzero().tolist():
        row, column = divmod(place, 4)
        pixels = image[number, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].permute(1, 2, 0).flatten()
        target = (pixels - pixels.mean()) / torch.sqrt(pixels.var() + 1e-6)
        errors.append((predicted[number, place] - target).square().mean())
    return torch.stack(errors).mean()


def test_loss_is_that_of_hidden_patches_only(noises: list[Tensor]) -> None:
    task = create(lr=1e-12, weight_decay=0)
    metrics = fit(task, limit_train_batches=1).callback_metrics
    assert {name for name in metrics if "loss" in name} == {"train_loss", "val_loss"}
    task.eval()
    with torch.no_grad():
        loaders = task.data.train_dataloader(), task.data.val_dataloader()
        for name, loader, noise in zip(("train_loss", "val_loss"), loaders, noises, strict=True):
            expected = slow_loss(task, next(iter(loader)).to("cpu").image, noise)
            torch.testing.assert_close(metrics[name], expected)


def test_masks_are_a_function_of_the_step_and_the_seed(noises: list[Tensor]) -> None:
    fit(create(), limit_val_batches=0)
    torch.rand(7)
    fit(create(), limit_val_batches=0)
    assert len(noises) == 6
    torch.testing.assert_close(noises[:3], noises[3:])
    assert (noises[0] != noises[1]).all()


def test_validation_hides_the_same_patches_of_an_image_each_time(noises: list[Tensor]) -> None:
    fit(create(), max_epochs=2, limit_train_batches=1)
    assert torch.equal(noises[1], noises[3])
    assert not torch.equal(noises[1][0], noises[1][1])
    names = ["a/1.png", "b/2.png"]
    expected = torch.cat([fixed_noise(["/elsewhere/1.png"], 9), fixed_noise(["2.png"], 9)])
    assert torch.equal(fixed_noise(names, 9), expected)


def test_killed_run_resumes_exactly(tmp_path: Path, noises: list[Tensor]) -> None:
    assert_killed_run_resumes(create, fit, tmp_path)
    torch.testing.assert_close(noises[-3:], noises[5:8])  # two steps and a validation


def test_checkpoint_is_timms_vit_and_a_decoder(tmp_path: Path) -> None:
    task = create()
    fit(task, tmp_path)
    model, spec = load_checkpoint(tmp_path / "last.ckpt")
    assert (spec.task, spec.model, spec.model_kwargs, spec.num_classes) == ("mae", MODEL, KWARGS, 0)
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in held} == {"model", "decoder"}
    weights = {name.removeprefix("model."): value for name, value in held.items() if name.startswith("model.")}
    plain = timm.create_model(MODEL, num_classes=0, **KWARGS).eval()
    plain.load_state_dict(weights)
    image = next(iter(task.data.val_dataloader())).to("cpu").image
    assert plain(image).shape == (8, 24)
    task.eval()
    for found in (model(image), task(image)):
        torch.testing.assert_close(found, plain(image))


@pytest.mark.parametrize("pooling", [{}, {"global_pool": "avg", "fc_norm": False}], ids=["token", "avg"])
def test_classifier_is_fine_tuned_from_the_encoder(tmp_path: Path, pooling: dict[str, Any]) -> None:
    source = create()
    fit(source, tmp_path, limit_val_batches=0)
    path = str(tmp_path / "last.ckpt")
    task = ClassificationTask(MODEL, model_kwargs=KWARGS | pooling, checkpoint_path=path, lr=1e-12, weight_decay=0)
    fit(task, limit_train_batches=1)
    own, theirs = task.model.state_dict(), source.model.state_dict()
    assert own.keys() - theirs.keys() == {"head.weight", "head.bias"}
    for name, value in theirs.items():
        torch.testing.assert_close(own[name], value)


def test_examples_are_images_of_the_validation() -> None:
    task = create()
    trainer = fit(task, batch=5, limit_val_batches=20, limit_train_batches=1)
    original, masked, reconstructed = task.examples.tensors().values()
    assert trainer.num_val_batches == [20]
    images = [batch.to("cpu").image for batch, _ in zip(task.data.val_dataloader(), range(20), strict=False)]
    assert torch.equal(original, torch.stack([image[0] for index, image in enumerate(images) if index % 5 != 4]))
    nothing = (masked == 0).all(1)
    assert nothing.float().mean() == 0.75
    assert torch.equal(original * ~nothing[:, None], masked)
    assert torch.equal(reconstructed * ~nothing[:, None], masked)
    assert (reconstructed != masked).any()
    fit(task := create(), limit_val_batches=1, limit_train_batches=1)
    assert len(task.examples.tensors()["original"]) == 8


def test_bfloat16_on_cpus_uses_unfused_attention() -> None:
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        task = create(lr=1e-12)
        losses.append(fit(task, limit_train_batches=1, precision=precision).callback_metrics["val_loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert not any(getattr(module, "fused_attn", False) for module in task.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, r"--model.mask_ratio must lie between 0 and 1, got 1.0"),
        ({"mask_ratio": 0.01}, "mask_ratio 0.01 hides 0 of 16 patches"),
        ({"decoder_dim": 15}, "decoder_dim must be a multiple of 4 and of decoder_num_heads 2, got 15"),
        ({"model_kwargs": {**KWARGS, "img_size": 40}}, "takes images of 40×40 pixels, the data have 32×32"),
        ({"name": "test_resnet", "model_kwargs": {}}, "test_resnet is no VisionTransformer of timm"),
    ],
    ids=str,
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(create(**options))


def test_images_of_one_channel_without_classes_are_enough(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in range(2):
            Image.effect_noise((40, 36), 60).save(tmp_path / split / f"{number}.png")
    task = create()
    trainer = create_trainer()
    data = ImageClassificationData(root=str(tmp_path), in_chans=1, batch_size=2, img_size=32, num_workers=0)
    trainer.fit(task, datamodule=data)
    assert trainer.global_step == 1
    assert task.spec.model_kwargs == {"in_chans": 1, **KWARGS}


# The command line

QUICK = [
    f"--model.model_kwargs={KWARGS}",
    "--data.batch_size=8",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=2",
    "--trainer.accelerator=cpu",
    "--trainer.num_sanity_val_steps=0",
]
PRETRAIN = ["--task=mae", "--model.decoder_dim=16", "--model.decoder_num_heads=2", *QUICK]
RUN = Path("runs", MODEL, "0")


def test_commands_lead_from_pretraining_to_fine_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    # Overshoots, so that the best epoch is not the last.
    steep = ["--model.lr=0.3", "--model.sched=constant"]
    assert run(train, ["fit", *PRETRAIN, *steep, "--trainer.max_epochs=3"]) == 0
    told = capsys.readouterr().out
    with (RUN / "metrics.csv").open() as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    assert len(losses) == 3
    assert f"best val loss {min(losses):.4f}, 3 epochs" in told
    assert re.search(rf"epoch 2/3, step 4, train_loss [\d.]+, val_loss {losses[1]:.4f}", told)
    names = {path.name for path in RUN.iterdir()}
    assert {"reconstructions-best.png", "reconstructions-last.png", "curve.png"} < names
    kept = torch.load(RUN / "checkpoints" / "best.ckpt", weights_only=True)
    assert kept["epoch"] == losses.index(min(losses))

    assert run(train, ["fit", *PRETRAIN, *steep, "--trainer.max_epochs=4", "--ckpt_path=last"]) == 0
    assert run(train, ["validate", *PRETRAIN, f"--ckpt_path={RUN}/checkpoints/best.ckpt"]) == 0
    assert f"{min(losses):.4f}" in capsys.readouterr().out

    (command,) = (line.removeprefix("fine-tune: ") for line in told.splitlines() if line.startswith("fine-tune: "))
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", "train.py")
    rest = [option for option in QUICK if not option.startswith("--model")]
    assert run(train, [*words, *rest, "--run_name=tuned", "--trainer.max_epochs=1"]) == 0
    assert load_checkpoint("runs/tuned/0/checkpoints/best.ckpt")[1].num_classes == 10


def test_unsuitable_commands_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(create(), tmp_path, limit_val_batches=0)
    Path("images").mkdir()
    Image.new("RGB", (32, 32)).save("images/0.png")
    for command, argv, message in [
        (evaluate, ["classify", "--checkpoint=last.ckpt", "--device=cpu"], "is a pretrained encoder, without classes"),
        (train, ["predict", *PRETRAIN, "--ckpt_path=last.ckpt", "--data.root=images"], "predicts no classes"),
        (train, ["fit", *QUICK, "--ckpt_path=last.ckpt"], "was trained with --task mae: pass that option here"),
        (
            train,
            ["fit", *PRETRAIN, "--ckpt_path=last.ckpt", "--model.decoder_depth=2"],
            "last.ckpt holds another decoder: --model.decoder_depth 1, here 2",
        ),
    ]:
        assert run(command, argv) != 0
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert not Path("predictions.csv").exists()
