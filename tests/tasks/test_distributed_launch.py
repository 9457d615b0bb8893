"""train.py under Lightning's own launcher and under torchrun, as users start it; seconds for each process to import."""

import csv
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TRAIN = Path(__file__).parents[2] / "train.py"
OPTIONS = [
    "--model.name=test_vit",
    "--model.model_kwargs={img_size: 32, patch_size: 8}",
    "--data.batch_size=4",
    "--trainer.limit_val_batches=2",
    "--trainer.accelerator=cpu",
    "--trainer.strategy=ddp",
    "--trainer.devices=2",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
]


@pytest.mark.slow
def test_signal_to_the_launcher_stops_and_torchrun_resumes(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), "fit", *OPTIONS],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "32-true on 2 × cpu" in process.stdout.readline()  # training begins
        process.send_signal(signal.SIGTERM)
        output, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143
    assert error.strip().splitlines() == ["error: terminated by SIGTERM"]
    last = Path("runs/test_vit/0/checkpoints/last.ckpt")
    assert output.count(f"--ckpt_path {last}") == 1
    stopped = torch.load(tmp_path / last, weights_only=True)["global_step"]
    assert 0 < stopped < 180

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, str(TRAIN), "fit", *OPTIONS, "--ckpt_path=last"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best val top-1") == 1
    assert [path.name for path in (tmp_path / "runs" / "test_vit").iterdir()] == ["0"]
    with (tmp_path / "runs" / "test_vit" / "0" / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["train_loss"]] == list(range(180))


@pytest.mark.slow
def test_checkpoint_that_only_some_processes_see_is_refused(tmp_path: Path) -> None:
    """As on nodes that do not share a folder."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\n"
        "from visionattn.cli.errors import run\n"
        "from visionattn.cli.train import main\n"
        "here = 'node' + os.environ['RANK']\n"
        "os.makedirs(here, exist_ok=True)\n"
        "os.chdir(here)\n"
        "sys.exit(run(main))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    first = subprocess.run(
        [*torchrun, "fit", *OPTIONS, "--trainer.limit_train_batches=1"], cwd=tmp_path, capture_output=True, timeout=300
    )
    assert first.returncode == 0, first.stderr
    second = subprocess.run(
        [*torchrun, "fit", *OPTIONS, "--ckpt_path=last"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert second.returncode != 0
    told = "error: process 1 resumes from nothing, the first one from runs/test_vit/0/checkpoints/last.ckpt"
    assert told in second.stderr
