"""Fixtures that run a command in this process, as a user does, and check its output and status."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from visionattn.cli import evaluate, train
from visionattn.cli.errors import run

TRAINING = {"fit", "validate", "test", "predict"}

QUICK = (
    "--model.name=test_resnet",
    "--data.img_size=32",
    "--data.batch_size=4",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=1",
    "--trainer.limit_val_batches=1",
    "--trainer.num_sanity_val_steps=0",
)
"""After ``fit``: one step of a small model."""


@dataclass(frozen=True)
class Ended:
    """Status and output of a command; ``err`` holds printed warnings, pytest holds those of Python."""

    status: int
    out: str
    err: str


Run = Callable[..., Ended]
Fails = Callable[..., str]


@pytest.fixture
def quick() -> tuple[str, ...]:
    """Return ``QUICK``; tests cannot import this file, as pytest reads several of its name."""
    return QUICK


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs train.py (``command("fit", …)``) or eval.py in an empty folder of the test's own."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)

    def call(*argv: str | Path) -> Ended:
        words = [str(word) for word in argv]
        main = train.main if words[0] in TRAINING else evaluate.main
        capsys.readouterr()
        status = run(main, words)
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return call


@pytest.fixture
def fails(command: Run) -> Fails:
    """Return ``fails("fit", …, says=("a", "b"), status=1)``, which checks for one line of error and returns it."""

    def call(*argv: str | Path, says: str | tuple[str, ...], status: int = 1) -> str:
        ended = command(*argv)
        lines = [line for line in ended.err.splitlines() if not line.startswith("warning: ")]
        assert len(lines) == 1, ended.err
        assert lines[0].startswith("error: ")
        for words in (says,) if isinstance(says, str) else says:
            assert words in lines[0]
        assert ended.status == status
        return lines[0]

    return call
