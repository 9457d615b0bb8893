"""Wrong options of a run, and of visionattn.fit: one line that names the option and the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import visionattn
from visionattn.errors import UsageError
from visionattn.training.rate_finder import RateSearch

Run = Callable[..., Any]
Fails = Callable[..., str]
Quick = tuple[str, ...]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(
            ["--early_stopping=3", "--trainer.limit_val_batches=0"],
            "--early_stopping needs a validation, and --trainer.limit_val_batches 0 leaves none",
            id="no validation",
        ),
        pytest.param(["--early_stopping=0"], "--early_stopping must be at least 1, got 0", id="no patience"),
        pytest.param(
            ["--early_stopping_min_delta=-1"], "--early_stopping_min_delta must be at least 0, got -1.0", id="change"
        ),
        pytest.param(["--save_top_k=0"], "--save_top_k must be at least 1, got 0", id="no checkpoints"),
        pytest.param(
            ["--find_lr=true", "--trainer.fast_dev_run=true"],
            "--find_lr needs more batches than --trainer.fast_dev_run has: leave one of them out",
            id="search in a trial",
        ),
        pytest.param(
            ["--save_top_k=3", "--trainer.strategy=fsdp2_sharded"],
            "--save_top_k 3 takes checkpoints of one file: pass --trainer.strategy fsdp2",
            id="folders",
        ),
        pytest.param(["--logger=neptune"], "--logger: expected Literal['csv', 'tensorboard', ", id="logger"),
    ],
)
def test_wrong_option_of_a_run_is_an_error(fails: Fails, quick: Quick, options: list[str], says: str) -> None:
    fails("fit", *quick, *options, says=says, status=2)
    assert not list(Path("runs").glob("*/*"))


def test_search_in_a_resumed_run_without_one_is_an_error(fails: Fails, command: Run, quick: Quick) -> None:
    assert command("fit", *quick).status == 0
    says = "checkpoints/last.ckpt was trained without --find_lr: leave it out to resume"
    fails("fit", *quick, "--find_lr=true", "--ckpt_path=last", says=says, status=2)


def test_search_without_a_falling_loss_is_an_error(fails: Fails, quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    constant = RateSearch([1e-3] * 30, torch.ones(30))
    monkeypatch.setattr("visionattn.cli.training.search_rate", lambda *_: constant)
    fails("fit", *quick, "--find_lr=true", says="--find_lr: the loss falls at none of 30 rates from 0.001 to 0.001")
    assert not list(Path("runs").glob("*/*"))


def test_search_on_several_devices_is_an_error(fails: Fails, quick: Quick) -> None:
    says = "--find_lr runs on one device: pass --trainer.devices 1, then the rate that it finds"
    fails("fit", *quick, "--find_lr=true", "--trainer.devices=2", says=says)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        pytest.param({"model": {"nam": "nat_pico"}}, "unknown option --model.nam; did you mean --model.name", id="key"),
        pytest.param({"modl": {"name": "nat_pico"}}, "unknown option --modl; did you mean --model", id="section"),
        pytest.param({"model.lr": "many"}, "--model.lr: expected float or null. Got value: many", id="value"),
        pytest.param({"model.model_kwargs": {1: object()}}, "model.model_kwargs: .* is not a value of a", id="object"),
        pytest.param("absent.yaml", "no config file absent.yaml: --config takes a file, or a shipped", id="config"),
        pytest.param(
            {"trainer.fast_dev_run": True},
            "trainer.fast_dev_run leaves no result: pass a small trainer.max_steps instead",
            id="trial",
        ),
    ],
)
def test_wrong_call_of_fit_is_an_error(
    config: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says) as error:
        visionattn.fit(config)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
