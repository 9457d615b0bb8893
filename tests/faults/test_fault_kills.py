"""A training that is killed many times, at any place, ends exactly as an uninterrupted one."""

import contextlib
import csv
import io
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import KILLED, kill_this_process, run_in_child
from visionattn.cli.errors import run
from visionattn.cli.train import main
from visionattn.tasks.classification import ClassificationTask
from visionattn.training.checkpoints.callbacks import LastCheckpoint
from visionattn.training.loggers import RunCSVLogger
from visionattn.training.runs import RunFolder

REPOSITORY = Path(__file__).parents[2]
Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


def options(epochs: int, batches: int, *, save_every: int, num_workers: int = 0) -> list[str]:
    """Return options of a small run on the digits with everything that has a state: an average, mixup, a schedule."""
    return [
        "fit",
        "--model.name=test_resnet",
        "--model.mixup=0.2",
        "--ema=0.9",
        "--data.batch_size=8",
        f"--data.num_workers={num_workers}",
        "--trainer.accelerator=cpu",
        f"--trainer.max_epochs={epochs}",
        f"--trainer.limit_train_batches={batches}",
        "--trainer.limit_val_batches=2",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.log_every_n_steps=1",
        f"--save_every_n_steps={save_every}",
        "--ckpt_path=last",
    ]


def assert_same(run_folder: Path, expected: Path, epochs: int, batches: int) -> None:
    """Check that two runs end with the same checkpoint, bit by bit, and with complete metrics."""
    ours, theirs = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (run_folder, expected)
    )
    assert ours["global_step"] == theirs["global_step"] == epochs * batches
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert_equal(ours[part], theirs[part])
    assert sorted(path.name for path in (run_folder / "checkpoints").glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    with (run_folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    validated = [int(row["epoch"]) for row in rows if row["val_top1"]]
    assert validated == list(range(epochs))
    steps = [int(row["step"]) for row in rows if row["train_loss"]]
    # The row of a step is lost if the kill comes between its checkpoint and the row.
    assert len(set(steps)) == len(steps)
    assert steps == sorted(steps)
    assert steps[-1] == epochs * batches - 1


def assert_equal(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert_equal(ours[key], value)
    elif isinstance(theirs, list | tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    else:
        assert ours == theirs


# Kills at chosen places, in forked processes


def at_call(number: int) -> Wrapper:
    """Kill the process when a function is called for the ``number``-th time."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        calls = iter(range(1, number))
        return lambda *args, **kwargs: kill_this_process() if next(calls, None) is None else function(*args, **kwargs)

    return wrap


def after_call(number: int) -> Wrapper:
    """Kill the process when a function has returned for the ``number``-th time."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        calls = iter(range(1, number))

        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            return kill_this_process() if next(calls, None) is None else result

        return call

    return wrap


def half_a_checkpoint(save: Callable[..., Any]) -> Callable[..., Any]:
    def write(content: Any, file: Any) -> None:
        buffer = io.BytesIO()
        save(content, buffer)
        file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        file.flush()
        kill_this_process()

    return write


def half_a_row(append: Callable[..., Any]) -> Callable[..., Any]:
    def write(self: RunCSVLogger, columns: list[str]) -> None:
        with self.path.open("a") as file:
            file.write("0,0.0")
        kill_this_process()

    return write


PLACES: list[tuple[Any, str, Wrapper]] = [
    (ClassificationTask, "training_step", at_call(1)),
    (ClassificationTask, "training_step", at_call(3)),
    (Path, "replace", at_call(2)),  # of metrics.csv, as the validation's columns are new
    (torch, "save", half_a_checkpoint),
    (LastCheckpoint, "on_train_batch_end", at_call(2)),
    (os, "fsync", at_call(1)),
    (os, "fsync", at_call(3)),
    (RunCSVLogger, "_append", half_a_row),
    (Path, "replace", at_call(1)),
    (Path, "replace", at_call(3)),
    (Path, "replace", after_call(1)),
    (ClassificationTask, "validation_step", at_call(1)),
    (ClassificationTask, "validation_step", after_call(2)),
    (LastCheckpoint, "on_validation_end", at_call(1)),
    (LastCheckpoint, "on_validation_end", after_call(1)),
    (LastCheckpoint, "on_train_epoch_end", at_call(1)),
    (Path, "replace", after_call(4)),
    (LastCheckpoint, "on_train_batch_end", after_call(3)),
    (os, "fsync", at_call(2)),
    (RunCSVLogger, "save", at_call(4)),
]


def test_training_killed_at_chosen_places_ends_as_if_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs, batches = 6, 4
    words = options(epochs, batches, save_every=1)
    runs, alone = tmp_path / "runs", tmp_path / "alone"
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert run(main, [*words, f"--runs={alone}"]) == 0  # here, so that what it imports is there for the others
    assert len(PLACES) == 20
    for owner, name, wrapper in PLACES:

        def killed(owner: Any = owner, name: str = name, wrapper: Wrapper = wrapper) -> int:
            monkeypatch.setattr(owner, name, wrapper(getattr(owner, name)))
            return run(main, [*words, f"--runs={runs}"])

        assert run_in_child(killed) == KILLED, f"{owner} {name} was not reached"
    assert run_in_child(lambda: run(main, [*words, f"--runs={runs}"])) == 0
    *begun, last = sorted((runs / "test_resnet").iterdir(), key=lambda path: int(path.name))
    assert all(RunFolder(folder).newest_checkpoint() is None for folder in begun)  # those killed before their first one
    assert_same(last, alone / "test_resnet" / "0", epochs, batches)


# Kills at random moments, from outside


@contextlib.contextmanager
def training(words: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(REPOSITORY / "train.py"), *words]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def await_training(process: subprocess.Popen[str]) -> str:
    """Read output until the training begins or the output ends, and return it."""
    assert process.stdout is not None
    said = ""
    while "parameters, on" not in said and (line := process.stdout.readline()):
        said += line
    return said


@pytest.mark.slow
def test_training_killed_at_random_moments_ends_as_if_uninterrupted(tmp_path: Path) -> None:
    """Two kills during the start, the others during the training; the step of each is printed."""
    epochs, batches, kills = 8, 30, 20
    alone, folder = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    folder.mkdir()
    with training(options(epochs, batches, save_every=1), alone) as process:
        await_training(process)
        began = time.monotonic()
        process.communicate()
        assert process.returncode == 0
    duration = time.monotonic() - began
    draw, step = random.Random(0), 0
    for number in range(kills):
        words = options(epochs, batches, save_every=draw.choice([1, 2, 5]), num_workers=draw.choice([0, 0, 1]))
        early, share = number in (0, 11), draw.random()
        with training(words, folder) as process:
            said = "" if early else await_training(process)
            left = duration * (1 - step / (epochs * batches)) / (kills - number)  # for each of the kills to come
            time.sleep(share * (3 if early else 1.6 * left))
            assert process.poll() is None, f"it ended by itself: {said}{process.communicate()[0]}"
            process.kill()
            rest = process.communicate()[0]
        assert "\nerror: " not in said + rest, said + rest
        newest = [path for run_folder in folder.glob("runs/*/*") if (path := RunFolder(run_folder).newest_checkpoint())]
        step = max((torch.load(path, weights_only=True)["global_step"] for path in newest), default=0)
        print(f"kill {number + 1}: {' '.join(words[-2:])}, at step {step} of {epochs * batches}", flush=True)
    with training(options(epochs, batches, save_every=5), folder) as process:
        output = process.communicate()[0]
        assert process.returncode == 0, output
    *_, last = sorted((folder / "runs" / "test_resnet").iterdir(), key=lambda path: int(path.name))
    assert_same(last, alone / "runs" / "test_resnet" / "0", epochs, batches)
