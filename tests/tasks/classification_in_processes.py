"""Trains in one process and in two, on the CPU: ``python -m tests.tasks.classification_in_processes FOLDER``.

Each process does one run after the other and leaves ``RUN-RANK.pt`` of each, with what it saw and where it ended. The
two have the environment that torchrun gives; they are forked, so that they need not import everything again.
"""

import os
import signal
import socket
import sys
from functools import partial, partialmethod
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import multiprocessing, nn

from tests.tasks.trainers import create_trainer
from visionattn.cli.errors import run
from visionattn.cli.train import main as cli
from visionattn.data import ImageClassificationData
from visionattn.tasks.classification import ClassificationTask
from visionattn.training.averaging import MovingAverage
from visionattn.training.checkpoints.callbacks import read_training

GLOBAL_BATCH = 16
MODEL: dict[str, Any] = {"name": "test_vit", "model_kwargs": {"img_size": 32, "patch_size": 8}}
SGD: dict[str, Any] = {"opt": "sgd", "lr": 0.05}
DCAL: dict[str, Any] = {"name": "dcal_vit_nano", "model_kwargs": {"img_size": 32, "depth": 2}}
ROUTING: dict[str, Any] = {
    "name": "iso_nano_routing",
    "model_kwargs": {"embed_dim": 16, "depth": 2, "patch_size": 4, "mixer_kwargs": [{"num_clusters": 8}, None]},
}
ADAMW: dict[str, Any] = {"opt": "adamw", "lr": 1e-3}
STOP_AFTER = 3  # of five batches in an epoch


class Trace(Callback):
    """Notes the images and the loss of each step; stops the run as a scheduler does, by a signal to one process."""

    def __init__(self, stopped_rank: int | None = None) -> None:
        self.stopped_rank = stopped_rank
        self.seen: list[dict[str, float]] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(dict(zip(batch.name, batch.image.sum((1, 2, 3)).tolist(), strict=True)))

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(outputs["loss"].item())

    def on_before_backward(self, trainer: Trainer, *args: Any) -> None:
        if self.stopped_rank == trainer.global_rank and len(self.seen) == STOP_AFTER:
            os.kill(os.getpid(), signal.SIGTERM)


def train(
    folder: Path,
    run_name: str,
    strategy: str = "auto",
    resume: str | None = None,
    stopped_rank: int | None = None,
    ema: bool = False,
    accumulate: int = 1,
    **options: Any,
) -> None:
    """One run of an epoch, which ends with a validation, and what is known of it afterwards."""
    seed_everything(0, verbose=False)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batch = GLOBAL_BATCH // world // accumulate
    task = ClassificationTask(**{**MODEL, **SGD, **options})
    # The last of four validation batches is one image for the first of two processes, and none for the second.
    data = ImageClassificationData(batch_size=batch, eval_batch_size=59, img_size=32, num_workers=0)
    trace = Trace(stopped_rank)
    trainer = create_trainer(
        folder / run_name,
        [trace, *([MovingAverage(decay=0.5)] if ema else [])],
        devices=world,
        strategy=strategy,
        limit_train_batches=5 * accumulate,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        default_root_dir=folder,
    )
    path = None if resume is None else folder / resume / "last.ckpt"
    if path is not None:
        data.load_state_dict(read_training(path, shards=True)["ImageClassificationData"])
    stopped = False
    try:
        trainer.fit(task, datamodule=data, ckpt_path=path)
    except SIGTERMException:
        stopped = True
    weights = {
        key: value.full_tensor() if hasattr(value, "full_tensor") else value
        for key, value in task.state_dict().items()
        if key.startswith("model.")
    }
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("val_")}
    found = {"seen": trace.seen, "losses": trace.losses, "stopped": stopped, "metrics": metrics, "weights": weights}
    torch.save(found, folder / f"{run_name}-{trainer.global_rank}.pt")


def alone(_: int, folder: Path) -> None:
    """Train in one process, as the reference."""
    torch.set_num_threads(1)
    train(folder, "one")
    train(folder, "one-adamw", **ADAMW)
    train(folder, "one-ema", ema=True)
    train(folder, "one-dcal", **DCAL)
    train(folder, "one-routing", ema=True, **ROUTING)


def together(rank: int, folder: Path, port: int) -> None:
    """Train in one of two processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_RUN_ID"] = "test"
    rank_zero_only.rank = rank  # as it is upon import, where the environment says it
    torch.set_num_threads(1)
    train(folder, "ddp", "ddp")
    train(folder, "fsdp2", "fsdp2")
    train(folder, "dcal-fsdp2", "fsdp2", **DCAL)
    train(folder, "stopped", "ddp", stopped_rank=1, **ADAMW)
    train(folder, "stopped-ddp", "ddp", resume="stopped", **ADAMW)
    train(folder, "stopped-fsdp2", "fsdp2", resume="stopped", **ADAMW)
    train(folder, "sharded", "fsdp2_sharded", stopped_rank=0, **ADAMW)
    train(folder, "sharded-resumed", "fsdp2_sharded", resume="sharded", **ADAMW)
    # The default backend would take a minute.
    nn.Module.compile = partialmethod(nn.Module.compile, backend="eager")  # type: ignore[method-assign, assignment]
    saving: dict[str, Any] = {"compile": True, "grad_checkpointing": True}
    train(folder, "ddp-saving", "ddp", ema=True, accumulate=2, **saving)
    train(folder, "fsdp2-saving", "fsdp2", **saving)
    train(folder, "ddp-routing", "ddp", ema=True, accumulate=2, grad_checkpointing=True, **ROUTING)
    command(folder)


def command(folder: Path) -> None:
    """train.py, which then goes on with what it has begun."""
    os.chdir(folder)
    options = ["--model.name=test_vit", "--model.model_kwargs={img_size: 32, patch_size: 8}", "--data.batch_size=8"]
    options += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0"]
    options += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.log_every_n_steps=1"]
    # From a file to a file, from one to a folder, from folder to folder, and back to a file.
    for epochs, strategy in ((1, "ddp"), (2, "fsdp2"), (4, "fsdp2_sharded"), (5, "fsdp2")):
        ends = [f"--trainer.max_epochs={epochs}", f"--trainer.strategy={strategy}", "--ckpt_path=last"]
        assert run(cli, ["fit", *options, "--run_name=two", *ends]) == 0


def main(folder: Path) -> None:
    """Both at a time. What they import first of all is imported here, once."""
    for name in ("sklearn.datasets", "torch._dynamo"):
        import_module(name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = partial(multiprocessing.start_processes, join=False, start_method="fork")
    for processes in (start(together, (folder, port), nprocs=2), start(alone, (folder,), nprocs=1)):
        while not processes.join():
            pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
