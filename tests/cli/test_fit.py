"""visionattn.fit: training as a function, without traces in the process."""

import logging
import os
import random
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

import visionattn
from visionattn.cli.errors import run
from visionattn.cli.fitting import flat_options
from visionattn.cli.train import main
from visionattn.errors import UsageError

QUICK: dict[str, Any] = {
    "model.name": "test_resnet",
    "data": {"img_size": 16, "batch_size": 8, "num_workers": 0},
    "trainer": {
        "accelerator": "cpu",
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "max_epochs": 2,
        "num_sanity_val_steps": 0,
    },
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def process_state() -> dict[str, Any]:
    loggers = [logging.getLogger(name) for name in ("", "lightning.pytorch", "lightning.fabric")]
    return {
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "torch": torch.get_rng_state().tolist(),
        "warnings": list(warnings.filters),
        "logging": [(logger.level, list(logger.handlers)) for logger in loggers],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "locks": [name for name in open_files() if name.endswith(".lock")],
    }


def open_files() -> list[str]:
    links = Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").is_dir() else ()
    return [str(link.readlink()) for link in links if link.exists()]


def weights(result: visionattn.FitResult) -> dict[str, torch.Tensor]:
    assert result.last_checkpoint is not None
    return torch.load(result.last_checkpoint, weights_only=True)["state_dict"]


def test_fit_equals_the_command_and_a_second_call(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = visionattn.fit(QUICK), visionattn.fit(QUICK, {"trainer.deterministic": True}, quiet=True)
    assert capsys.readouterr().out.count("best val top-1") == 1
    options = [f"--{name}={value}" for name, value in flat_options(QUICK).items()]
    assert run(main, ["fit", *options, "--run_name=command"]) == 0
    by_command = torch.load("runs/command/0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert [str(result.folder) for result in (first, second)] == ["runs/test_resnet/0", "runs/test_resnet/1"]
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name])
        assert torch.equal(value, by_command[name])
    assert first.metrics == second.metrics


def test_result_holds_what_the_run_folder_says() -> None:
    result = visionattn.fit(QUICK, quiet=True)
    summary = yaml.safe_load((result.folder / "summary.json").read_text())
    assert (result.metric, result.score) == ("val_top1", summary["best"]["val_top1"])
    assert (result.epochs, result.steps) == (2, 4) == (summary["epochs"], summary["steps"])
    assert {"val_top1", "val_loss", "train_loss"} <= result.metrics.keys()
    assert result.best_checkpoint == result.folder / "checkpoints" / "best.ckpt"
    assert result.load().spec.model == "test_resnet"
    resumed = visionattn.fit(QUICK, {"ckpt_path": "last", "trainer.max_epochs": 3}, quiet=True)
    assert (resumed.folder, resumed.epochs, resumed.steps) == (result.folder, 3, 6)
    assert resumed.seconds > result.seconds


class Failing(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise self.error


class PrunedError(Exception):
    """As a search raises to stop a training."""


@pytest.mark.parametrize("error", [None, PrunedError("too low"), KeyboardInterrupt()], ids=repr)
def test_process_is_left_as_it_was(error: BaseException | None) -> None:
    options = {"trainer.deterministic": True, "trainer.max_epochs": 1, "trainer.limit_val_batches": 0}
    before = process_state()
    if error is None:
        result = visionattn.fit(QUICK, options, {"trainer.enable_checkpointing": False}, quiet=True)
        assert (result.score, result.best_checkpoint, result.last_checkpoint) == (None, None, None)
        with pytest.raises(UsageError, match="has no checkpoint to load"):
            result.load()
    else:
        with pytest.raises(type(error)) as raised:
            visionattn.fit(QUICK, options, callbacks=[Failing(error)], quiet=True)
        del raised
    assert process_state() == before


def test_training_that_cannot_begin_leaves_no_folder_and_no_lock() -> None:
    before = process_state()
    with pytest.raises(ValueError, match="the head only 4"):
        visionattn.fit(QUICK, {"model.num_classes": 4}, quiet=True)
    with pytest.raises(UsageError, match="--trainer: "):
        visionattn.fit(QUICK, {"trainer.strategy": "foo"}, quiet=True)
    assert process_state() == before
    assert not list(Path().glob("runs/*/*"))


def test_config_is_a_file_with_overrides() -> None:
    Path("mine.yaml").write_text(yaml.safe_dump({"base": "quickstart", "model": {"lr": 0.5, "lr_base": None}}))
    quick = flat_options(QUICK)
    result = visionattn.fit(Path("mine.yaml"), quick, {"trainer.max_epochs": 1}, {"model": {"lr": 0.25}}, quiet=True)
    config = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert (result.folder.parent.name, config["model"]["lr"], config["trainer"]["max_epochs"]) == ("mine", 0.25, 1)


def test_options_are_written_as_the_command_line_takes_them() -> None:
    found = flat_options(
        {
            "model": {"lr": np.float64(1e-5), "model_kwargs": {"img_size": 8}, "pretrained": True},
            "data.mean": (0.5, torch.tensor(0.25), np.float32(1)),
            "data.root": Path("a b"),
            "run_name": "x",
            "ema": None,
        }
    )
    assert found == {
        "model.lr": "1e-05",
        "model.model_kwargs": '{"img_size": 8}',
        "model.pretrained": "true",
        "data.mean": "[0.5, 0.25, 1.0]",
        "data.root": "a b",
        "run_name": "x",
        "ema": "null",
    }
