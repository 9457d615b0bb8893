"""The task recall: what is minimised and measured, causal models, and what a user does with a run."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F

from tests.tasks.trainers import assert_killed_run_resumes, create_trainer
from visionattn import load_model
from visionattn.cli.errors import run
from visionattn.cli.train import main
from visionattn.data import RecallData
from visionattn.data.recall.module import collate
from visionattn.evaluation.classification import require_classes
from visionattn.tasks import RecallTask

SMALL: dict[str, Any] = {"embed_dim": 8, "mlp_ratio": 1.0}
ONE_STEP = (
    *("--task=recall", "--model.embed_dim=8", "--data.batch_size=4", "--data.train_length=8", "--data.val_length=4"),
    *("--trainer.accelerator=cpu", "--trainer.max_epochs=1"),
)


def fit(task: RecallTask, folder: Path | None = None, resume: Path | None = None, **options: Any) -> Trainer:
    name = options.pop("name", "map")
    trainer = create_trainer(folder, every_n_steps=2, **options)
    data = RecallData(name=name, batch_size=4, train_length=12, val_length=10, seed=0)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("name", ["map", "mqar", "regression"])
def test_loss_and_score_are_those_of_the_cells_that_ask(name: str) -> None:
    task = RecallTask(mixer="full", lr=0.1, is_causal=name == "mqar", **SMALL)
    metrics = fit(task, name=name).callback_metrics
    model: Any = task.eval().model
    answers, targets = [], []
    for batch in task.data.val_dataloader():
        with torch.no_grad():
            logits = model.head.fc(model.forward_features(batch.image).permute(0, 2, 3, 1)).flatten(1, 2)
        for number, queries in enumerate(batch.queries.tolist()):
            answers += [logits[number, query] for query in queries]
            targets += list(batch.target[number])
    found, wanted = torch.stack(answers), torch.stack(targets)
    if name == "regression":
        loss = F.mse_loss(found, wanted)
        score = 1 - loss / (wanted - wanted.mean(0)).square().mean()
    else:
        loss = -found.log_softmax(-1)[torch.arange(len(wanted)), wanted].mean()
        score = (found.argmax(-1) == wanted).float().mean()
    torch.testing.assert_close(metrics["val_loss"], loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(metrics[task.monitor], score, atol=1e-5, rtol=1e-5)


def test_process_without_examples_adds_nothing_of_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    task = RecallTask(mixer="full", **SMALL)
    fit(task, name="regression")
    task.val_r2.reset()
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    task._evaluate(collate([None]), "val", 0)
    state = dict(task.val_r2.metric_state)
    assert state.pop("total") == 0
    assert [x.tolist() for x in state.values()] == [[0.0] * 4] * 3


@pytest.mark.parametrize("mixer", ["full", "neighborhood", "taylor", "elu", "blocks"])
def test_causal_model_sees_no_later_word(mixer: str) -> None:
    options = {"embed_dim": 8, "depth": 2, "num_heads": 1, "kernel_size": 3, "patch_size": 1, "cpe": True}
    model = timm.create_model("iso_nano", mixer=mixer, is_causal=True, in_chans=5, **options).double().eval()
    torch.nn.init.normal_(model.patch_embed.proj.bias)
    words = torch.randn(1, 5, 1, 12, dtype=torch.float64, requires_grad=True)
    model.forward_features(words)[..., 6].square().sum().backward()
    assert words.grad is not None
    seen = words.grad.abs().sum((0, 1, 2)) > 0
    assert not seen[7:].any()
    assert seen[5:7].all()


def test_killed_run_resumes_with_the_same_examples(tmp_path: Path) -> None:
    def create() -> RecallTask:
        torch.manual_seed(0)
        return RecallTask(mixer="full", sched="constant", **SMALL)

    assert_killed_run_resumes(create, fit, tmp_path)


def test_run_can_be_tested_by_the_command_that_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(main, ["fit", *ONE_STEP, "--model.mixer=[full, neighborhood]", "--run_name=r"]) == 0
    printed = capsys.readouterr().out
    assert "iso_nano" in printed
    assert "on 8×8 cells with 6 pairs: 8 train, 4 validation, 4 test examples" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("test: "))
    words = shlex.split(line)[3:]
    assert run(main, [*words, "--trainer.accelerator=cpu"]) == 0
    assert "test_recall" in capsys.readouterr().out
    loaded = load_model(tmp_path / "runs/r/0/checkpoints/best.ckpt")
    assert [type(block.attn).__name__ for block in loaded.model.blocks] == [
        "FullAttention2d",
        "NeighborhoodAttention2d",
    ]
    with pytest.raises(ValueError, match=r"best.ckpt is a model of the recall suite, .*: visionattn test evaluates it"):
        require_classes(loaded)


def test_checkpoint_of_another_problem_is_refused(tmp_path: Path) -> None:
    fit(RecallTask(mixer="full", **SMALL), tmp_path, limit_train_batches=1)
    task = RecallTask(model_kwargs={"mixer": "full", "in_chans": 19, "num_classes": 6, **SMALL})
    trainer = create_trainer()
    says = "the weights are of 19 channels and 6 answers, and 8×8 cells with 5 pairs have 17 and 6: pass the --data"
    with pytest.raises(ValueError, match=says):
        trainer.validate(task, datamodule=RecallData(pairs=5, num_workers=0), ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.slow
def test_full_attention_recalls_what_a_window_does_not_see() -> None:
    scores = {}
    for mixer in ("full", "neighborhood"):
        torch.manual_seed(0)
        task = RecallTask(mixer=mixer, lr=4e-3, warmup_epochs=1)
        trainer = create_trainer(max_epochs=4, gradient_clip_val=1.0)
        trainer.fit(task, datamodule=RecallData(train_length=9600, val_length=500, seed=0))
        scores[mixer] = float(trainer.callback_metrics["val_recall"])
    assert scores["full"] > 0.99
    assert scores["neighborhood"] < 0.5
