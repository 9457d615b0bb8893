"""One training loop in a process of its own: this library's, a plain one, or one after timm's training script.

training.py and startup.py start it. All three train the same model on the same folder with the same optimizer, loss,
schedule and kind of augmentation, and print as their last line, in JSON, what each step took.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path

import torch
from torch import nn

LR, WEIGHT_DECAY, SCALE = 1e-3, 0.05, (0.7, 1.0)
STARTED = "VISIONATTN_BENCH_STARTED"
"""Environment variable with the time at which the process was started."""


@dataclass(frozen=True)
class Task:
    """Task of a training.

    Attributes:
        root: Folder with `train/CLASS/*` and `val/CLASS/*`.
        model: Name of the model.
        batch: Images per step.
        steps: Updates.
        workers: Processes that read images.
        threads: Of torch.
        size: Edge of the images.
    """

    root: str
    model: str
    batch: int
    steps: int
    workers: int
    threads: int
    size: int = 32

    @property
    def num_classes(self) -> int:
        """Return the number of folders of the training split."""
        return sum(path.is_dir() for path in (Path(self.root) / "train").iterdir())


@dataclass
class Record:
    """Record of a loop.

    Attributes:
        ends: When each step ended, in seconds.
        losses: Of each step.
        images: Of each step.
        parameters: Trained ones.
        first_step_s: From the start of the process to the end of the first step.
        peak_mb: Most memory that the process held, without those that read images.
    """

    ends: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    parameters: int = 0
    first_step_s: float = 0.0
    peak_mb: float = 0.0

    def add(self, loss: torch.Tensor, count: int) -> None:
        """Record a step that just ended."""
        if not self.ends:
            self.first_step_s = time.time() - float(os.environ.get(STARTED, "nan"))
        self.losses.append(loss.item())
        self.images.append(count)
        self.ends.append(time.perf_counter())


def ours(task: Task, record: Record) -> None:
    """Run `train.py fit`, with its logger and callbacks, without validation."""
    from lightning.pytorch import Callback

    from visionattn.lazy import import_program

    training = import_program("visionattn.cli.training")  # as the program does

    class Clock(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
            record.add(outputs["loss"], len(batch.image))
            record.parameters = record.parameters or count_parameters(module.model)

    options = {
        "data.root": task.root,
        "data.img_size": task.size,
        "data.batch_size": task.batch,
        "data.num_workers": task.workers,
        "data.scale": list(SCALE),
        "data.color_jitter": 0,
        "data.train_interpolation": "bicubic",
        "model.name": task.model,
        "model.lr": LR,
        "model.weight_decay": WEIGHT_DECAY,
        "model.channels_last": "false",  # all loops compute the same
        "trainer.precision": "32-true",
        "trainer.accelerator": "cpu",
        "trainer.max_steps": task.steps,
        "trainer.limit_val_batches": 0,
        "trainer.num_sanity_val_steps": 0,
    }

    with tempfile.TemporaryDirectory() as runs, training.training_settings():
        words = ["fit", f"--runs={runs}", *(f"--{name}={value}" for name, value in options.items())]
        training.TrainingCLI(words, callbacks=[Clock()])


def plain(task: Task, record: Record) -> None:
    """Run a loop without a framework: torchvision's folder and transforms, torch's loader, optimizer, schedule."""
    import timm
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    import visionattn  # noqa: F401  (registers the models)

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                task.size, scale=SCALE, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ]
    )
    data = datasets.ImageFolder(Path(task.root) / "train", transform)
    loader = DataLoader(
        data, task.batch, shuffle=True, num_workers=task.workers, drop_last=True, persistent_workers=task.workers > 0
    )
    model = timm.create_model(task.model, num_classes=task.num_classes)
    record.parameters = count_parameters(model)
    decayed, others = [], []
    for parameter in model.parameters():
        (decayed if parameter.dim() > 1 else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, fused=True)  # as ours
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / task.steps)
    )
    criterion = nn.CrossEntropyLoss()
    model.train()
    while True:
        for image, target in loader:
            loss = criterion(model(image), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            record.add(loss, len(image))
            if len(record.ends) == task.steps:
                return


def timm_script(task: Task, record: Record) -> None:
    """Run the parts of timm's training script; the script itself is in no package of timm's."""
    import timm
    from timm.data import create_dataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter

    import visionattn  # noqa: F401  (registers the models)

    data = create_dataset("", root=task.root, split="train", is_training=True)
    loader = create_loader(
        data,
        input_size=(3, task.size, task.size),
        batch_size=task.batch,
        is_training=True,
        scale=SCALE,
        color_jitter=0,
        interpolation="bicubic",
        num_workers=task.workers,
        use_prefetcher=False,
        persistent_workers=task.workers > 0,
        device=torch.device("cpu"),
    )
    model = timm.create_model(task.model, num_classes=task.num_classes)
    record.parameters = count_parameters(model)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=WEIGHT_DECAY)
    schedule, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=1, updates_per_epoch=task.steps, step_on_epochs=False, min_lr=0.0
    )
    criterion = LabelSmoothingCrossEntropy(0.0)
    losses, durations = AverageMeter(), AverageMeter()
    updates = 0
    model.train()
    while True:
        began = time.time()
        for image, target in loader:
            loss = criterion(model(image), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            losses.update(loss.item(), len(image))
            durations.update(time.time() - began)
            schedule.step_update(num_updates=updates, metric=losses.avg)
            record.add(loss, len(image))
            if updates == task.steps:
                return
            began = time.time()


LOOPS: dict[str, Callable[[Task, Record], None]] = {"visionattn": ours, "plain loop": plain, "timm": timm_script}


def count_parameters(model: nn.Module) -> int:
    """Count trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def check_root(root: Path | None) -> None:
    """Check `--root`, if it is given.

    Raises:
        ValueError: It is no folder with a training split.
    """
    if root is not None and not (root / "train").is_dir():
        raise ValueError(f"--root must be a folder with train/CLASS and val/CLASS; got {root}")


def write_digits(root: Path, images: int, size: int = 32) -> None:
    """Write a folder of scikit-learn's digits as JPEG files, repeated until there are enough; 20 for validation."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for split, count in (("train", images), ("val", 20)):
        for label in range(10):
            (root / split / str(label)).mkdir(parents=True)
        for index in range(count):
            scan, label = (x[index % len(digits.target)] for x in (digits.images, digits.target))
            image = Image.fromarray((scan * (255 / 16)).round().astype(np.uint8)).convert("RGB")
            image.resize((size, size), Image.Resampling.BICUBIC).save(root / split / str(label) / f"{index:05d}.jpg")


def main(argv: list[str]) -> int:
    """Run the loop that the first argument names, on the task that the second one describes."""
    task, record = Task(**json.loads(argv[1])), Record()
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    with redirect_stdout(StringIO()):
        LOOPS[argv[0]](task, record)
    record.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(asdict(record)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
