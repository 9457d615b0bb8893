"""Faults during a run: full disks, signals, processes that die, two runs in one folder."""

import errno
import fcntl
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from visionattn.cli.errors import describe
from visionattn.data.loading import ImageDataset
from visionattn.output import write_json
from visionattn.tasks.classification import ClassificationTask
from visionattn.training.callbacks import LearningCurve
from visionattn.training.checkpoints.callbacks import LastCheckpoint
from visionattn.training.loggers import RunCSVLogger
from visionattn.training.runs import RunFolder, new_run

Run = Callable[..., Any]
Fails = Callable[..., str]
Limit = Callable[[int], AbstractContextManager[None]]
Options = tuple[str, ...]

RUN = Path("runs/test_resnet/0")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Disks


def test_checkpoint_on_a_full_disk_keeps_the_one_before(
    quick: Options, command: Run, fails: Fails, file_size_limit: Limit
) -> None:
    assert command("fit", *quick).status == 0
    before = content(RUN / "checkpoints")
    with file_size_limit(100_000):
        line = fails("fit", *quick, "--trainer.max_epochs=2", "--ckpt_path=last", says="cannot write checkpoint ")
    assert line.endswith(
        "last.ckpt: File too large; the one before it is whole: make room and resume with --ckpt_path last"
    )
    assert content(RUN / "checkpoints") == before
    assert command("fit", *quick, "--trainer.max_epochs=2", "--ckpt_path=last").status == 0


def test_first_checkpoint_on_a_full_disk_is_an_error(quick: Options, fails: Fails, file_size_limit: Limit) -> None:
    with file_size_limit(100_000):
        fails("fit", *quick, says="File too large; make room, or keep runs elsewhere with --runs FOLDER")
    assert list((RUN / "checkpoints").iterdir()) == []


def test_metrics_on_a_full_disk_are_written_later(tmp_path: Path, file_size_limit: Limit) -> None:
    logger, path = RunCSVLogger(RunFolder(tmp_path)), tmp_path / "metrics.csv"

    def log(step: int, **metrics: float) -> None:
        logger.log_metrics(metrics, step)
        logger.save()

    log(0, a=0.5)
    before = path.read_text()
    with file_size_limit(len(before) + 3):
        with pytest.warns(UserWarning, match=r"cannot write .*metrics\.csv: File too large; it is tried again"):
            log(1, a=0.25)
        log(2, a=0.125, b=1)
        assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.csv"]
    log(3, b=2)
    assert path.read_text().split() == ["a,b,step", "0.5,,0", "0.25,,1", "0.125,1,2", ",2,3"]


def test_results_are_replaced_atomically(tmp_path: Path, file_size_limit: Limit) -> None:
    path = tmp_path / "r.json"
    write_json({"top1": 0.5}, path)
    with file_size_limit(100), pytest.raises(OSError, match=r"cannot write .*r\.json: File too large; make room there"):
        write_json({"top1": [0.25] * 1000}, path)
    assert json.loads(path.read_text()) == {"top1": 0.5}
    assert [each.name for each in tmp_path.iterdir()] == ["r.json"]


def test_runs_folder_that_is_a_file_is_an_error(quick: Options, fails: Fails) -> None:
    Path("runs").write_text("")
    fails("fit", *quick, says="cannot write runs/test_resnet: Not a directory; name a place elsewhere")


def test_read_only_disk_is_an_error(quick: Options, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    fails("fit", *quick, says="cannot write runs/test_resnet: Read-only file system; name a place elsewhere")


def test_image_deleted_during_training_is_named(
    quick: Options, colour_folder: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LastCheckpoint.on_validation_end

    def then_remove(self: LastCheckpoint, *args: Any) -> None:
        original(self, *args)
        shutil.rmtree(colour_folder / "train")

    monkeypatch.setattr(LastCheckpoint, "on_validation_end", then_remove)
    options = ("--data.name=folder", f"--data.root={colour_folder}", "--trainer.max_epochs=2")
    fails("fit", *quick, *options, says=(f"cannot read {colour_folder}/train/", "No such file or directory"))
    assert (RUN / "checkpoints" / "last.ckpt").exists()


# Two at once


def test_simultaneous_runs_get_different_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionattn.training.runs._numbers", lambda folder: [])  # all of them look before any has begun
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: new_run(tmp_path, "x"), range(20)))
    assert sorted(int(run.path.name) for run in runs) == list(range(20))


@pytest.fixture
def other_trainer() -> Iterator[Callable[[RunFolder], int]]:
    """Return a function that forks a process, which holds the lock of a run folder until it is killed."""
    children: list[int] = []

    def begin(run: RunFolder) -> int:
        ready, done = os.pipe()
        child = os.fork()
        if child == 0:
            lock = run.claim()
            os.write(done, b"x")
            while lock:
                signal.pause()
        assert os.read(ready, 1) == b"x"
        children.append(child)
        return child

    yield begin
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_run_in_another_process_is_not_resumed(
    quick: Options, command: Run, fails: Fails, other_trainer: Callable[[RunFolder], int]
) -> None:
    assert command("fit", *quick).status == 0
    pid = other_trainer(RunFolder(RUN))
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    again = ("fit", *quick, "--ckpt_path=last", "--trainer.max_epochs=2")
    fails(*again, says=(f"{RUN} is being trained by process {pid} on ", ": wait for its end, stop it, or leave out"))
    assert before == {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    assert command("fit", *quick).status == 0  # in a folder of its own


def test_lock_is_released_when_its_process_dies(
    tmp_path: Path, other_trainer: Callable[[RunFolder], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    pid = other_trainer(run)
    with pytest.raises(ValueError, match=f"is being trained by process {pid} on "):
        run.claim()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    lock = run.claim()
    assert lock is not None
    lock.close()


def test_file_system_without_locks_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match="cannot be locked .*: train there with one process only"):
        assert RunFolder(tmp_path).claim() is None


# Processes and signals


@pytest.mark.parametrize(
    ("end", "how"),
    [
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGKILL), "is killed by signal: Killed", id="killed"),
        pytest.param(lambda: os._exit(3), "exited unexpectedly", id="gone"),
    ],
)
def test_dead_loader_worker_is_an_error(
    end: Callable[[], None],
    how: str,
    quick: Options,
    colour_folder: Path,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageDataset, "_read", lambda self, draw: end())
    options = ("--data.name=folder", f"--data.root={colour_folder}", "--data.num_workers=1")
    line = fails("fit", *quick, *options, says=("error: a data-loader worker ", "--data.num_workers, or 0 to read"))
    assert how in line or "exited unexpectedly" in line  # whether the loader or its signal handler is the first to see


@pytest.mark.parametrize(
    "message",
    [
        "unable to write to file </torch_12_3456789_0>: No space left on device (28)",
        "DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
    ],
)
def test_full_shared_memory_is_an_error(message: str) -> None:
    line = describe(RuntimeError(message))
    assert line.startswith("the memory that data-loader workers share (/dev/shm) is full: pass --data.num_workers 0")


def test_shared_memory_error_of_a_gpu_has_another_hint() -> None:
    message = "out of resource: shared memory, Required: 135168, Hardware limit: 101376"
    assert describe(RuntimeError(message)).startswith(f"RuntimeError: {message}")


@pytest.fixture
def _sigint() -> Iterator[None]:
    """Restore Python's handler of SIGINT, as an interrupted training in this process leaves it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.usefixtures("_sigint")
def test_ctrl_c_twice_ends_with_130(quick: Options, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = []

    def interrupt(self: Any, *args: Any) -> None:
        interrupted.append(type(self).__name__)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ClassificationTask, "validation_step", interrupt)
    monkeypatch.setattr(LearningCurve, "_draw", interrupt)  # while the run winds up
    ended = command("fit", *quick, "--trainer.limit_train_batches=2", "--save_every_n_steps=1")
    assert interrupted[:2] == ["ClassificationTask", "LearningCurve"]
    assert ended.status == 130
    assert ended.err.splitlines()[-1] == "error: interrupted"
    assert f"--ckpt_path {RUN / 'checkpoints' / 'last.ckpt'}" in ended.out


# Devices and memory


def too_large() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


def too_large_for_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.1 GiB, of which …")


def too_many_objects() -> None:
    raise MemoryError


@pytest.mark.parametrize("allocate", [too_large, too_large_for_a_gpu, too_many_objects])
def test_out_of_memory_is_an_error(
    allocate: Callable[[], None], quick: Options, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ClassificationTask.training_step

    def step(self: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1:
            allocate()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", step)
    remedies = (
        "--data.batch_size",
        "--trainer.accumulate_grad_batches",
        "bf16-mixed",
        "--model.grad_checkpointing true",
    )
    fails("fit", *quick, "--trainer.max_epochs=2", says=("error: out of memory: ", *remedies))
    assert torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_missing_gpu_is_an_error(name: str, quick: Options, fails: Fails) -> None:
    says = "--trainer.accelerator: torch finds no such device in this machine; leave the option out, or pass cpu"
    fails("fit", *quick, f"--trainer.accelerator={name}", says=says)


# Weights & Biases


@pytest.fixture
def wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Simulate W&B without a network and a login."""
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")  # the logger changes it
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield
    wandb.teardown()


def assert_trained_offline(command: Run, quick: Options, reason: str) -> None:
    with pytest.warns(UserWarning, match=rf"no connection to W&B \({reason}.* uploaded by: wandb sync runs/"):
        ended = command("fit", *quick, "--logger=wandb")
    assert ended.status == 0, ended.err
    assert (RUN / "metrics.csv").is_file()
    assert list(RUN.glob("wandb/offline-run-*"))


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_without_a_login_is_offline(quick: Options, command: Run) -> None:
    assert_trained_offline(command, quick, "No API key configured")


@pytest.mark.slow
@pytest.mark.usefixtures("wandb_offline")
def test_wandb_without_an_answer_is_offline(quick: Options, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    assert_trained_offline(command, quick, ".*connection refused")
