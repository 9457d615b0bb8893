"""Base of all DataModules of images: the position in an epoch, and the images that could not be read."""

import os
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from visionattn.checks import check_range
from visionattn.data.errors import DataError
from visionattn.data.image_cache import ImageCache
from visionattn.data.loading import ImageLoader, OnError, start_worker
from visionattn.data.normalisation import Normalisation
from visionattn.data.sampling import EvalSampler, TrainSampler

Balance = Literal["none", "weights", "sampler"]

MAX_WORKERS = 8
MAX_SEED = 2**32 - 1  # as seed_everything takes it


def usual_workers() -> int:
    """Return the number of loader processes by default: that of cores, at most `MAX_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, cores)


class ImageData(LightningDataModule):
    """DataModule with loaders by split and the position from which the training loader starts.

    Attributes:
        preprocessing: timm's preprocessing: ``input_size`` (C, H, W), ``mean``, ``std``, ….
        preferred_classes: class names of the head that a training starts from; the same classes keep their numbers.
        multi_label: whether an image may have any number of classes; targets are then 0 or 1 of each, [B, num_classes]
            in float32.
        balance: treatment of classes with few images: ``none``, ``weights`` in the loss, or ``sampler``, which draws
            the images of all classes equally often.

    Args:
        batch_size: images per step and per device.
        eval_batch_size: images per step and per device in evaluation, by default ``batch_size``.
        num_workers: loader processes per device; None for the number of cores, at most 8.
        on_error: treatment of images that cannot be decoded.
        seed: seed of shuffling and augmentation, by default that of ``seed_everything``.

    Raises:
        DataError: a number is out of its bounds.
    """

    preprocessing: dict[str, Any]
    multi_label: bool = False
    balance: Balance = "none"
    weights_decide: ClassVar[frozenset[str]] = frozenset({"input_size", "mean", "std", "interpolation"})
    """The parts of the preprocessing that pretrained weights decide, unless options do."""
    image_cache: ImageCache | None = None  # of decoded images
    worker_setup: Callable[[int], None] | None = None  # called in each loader worker, with its number

    def __init__(
        self, batch_size: int, eval_batch_size: int | None, num_workers: int | None, on_error: OnError, seed: int | None
    ) -> None:
        super().__init__()
        check_range("data.batch_size", batch_size, 1, error=DataError)
        check_range("data.eval_batch_size", eval_batch_size, 1, error=DataError)
        check_range("data.num_workers", num_workers, 0, error=DataError)
        check_range("data.seed", seed, 0, MAX_SEED, error=DataError)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers = usual_workers() if num_workers is None else num_workers
        self.on_error = on_error
        self._seed = seed
        self._expected: list[str] | None = None  # a checkpoint's classes
        self.preferred_classes: list[str] = []
        self._loaders: dict[str, ImageLoader] = {}
        self._resumed: dict[str, int] = {"epoch": 0, "batches": 0, "batch_size": batch_size}  # what a checkpoint says

    @property
    def seed(self) -> int:
        """Seed of shuffling and augmentation."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self._seed is None else self._seed

    @property
    def shard(self) -> tuple[int, int]:
        """Rank of this process, and the number of processes that share the data."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Class names in the order of their indices; known after ``setup``."""

    @property
    def num_classes(self) -> int:
        """Number of classes; known after ``setup``."""
        return len(self.class_names)

    @property
    def item_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images that the loaders yield."""
        channels, height, width = self.preprocessing["input_size"]
        return channels, height, width

    @property
    def normalisation(self) -> Normalisation:
        """Normalisation of images that the loaders yield as bytes."""
        return Normalisation.of(self.preprocessing)

    @property
    def worker_options(self) -> dict[str, Any]:
        """Options of workers that all loaders share."""
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": partial(start_worker, self.worker_setup),
        }

    def batches(
        self, count: int, training: bool, aug_repeats: int = 0, weights: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the loader's options for batches of ``count`` images.

        Training shuffles, or draws images by ``weights`` [N], and starts where a resumed run stopped; evaluation
        keeps the order of the images.
        """
        rank, world = self.shard
        if not training:
            return {"batch_size": self.eval_batch_size, "sampler": EvalSampler(count, rank, world)}
        epoch, done = self.start
        sampler = TrainSampler(count, self.seed, rank, world, aug_repeats, (epoch, done * self.batch_size), weights)
        # An odd last batch disturbs batch norm and mixup; a data set smaller than one batch still trains.
        return {"batch_size": self.batch_size, "sampler": sampler, "drop_last": len(sampler) >= self.batch_size}

    @abstractmethod
    def loader(self, split: str) -> ImageLoader:
        """Make the loader of a split: ``train``, ``validation`` or ``test``."""

    def train_dataloader(self) -> ImageLoader:
        """Return the training loader: shuffled, augmented, from the place where a resumed run stopped."""
        return self._keep("train")

    def val_dataloader(self) -> ImageLoader:
        """Return the validation loader: every image once, in order; the ranks take turns."""
        return self._keep("validation")

    def test_dataloader(self) -> ImageLoader:
        """Return the loader of the test split, or of the validation split if there is none."""
        return self._keep("test")

    def _keep(self, split: str) -> ImageLoader:
        self._loaders[split] = self.loader(split)
        return self._loaders[split]

    def set_epoch(self, epoch: int) -> None:
        """Do nothing; Lightning tells the epoch to the sampler."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert images to the precision of the model; Lightning did so before they became floats."""
        trainer: Any = self.trainer
        return trainer.precision_plugin.convert_input(batch)

    def expect_classes(self, names: list[str]) -> None:
        """Number the classes as a checkpoint does; call this before ``setup``."""
        self._expected = list(names) or None

    def broken(self, split: str) -> list[str]:
        """Return one line for each unreadable image that this process met in ``split`` so far."""
        return list(self._loaders[split].broken) if split in self._loaders else []

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the training in its epoch, for checkpoints."""
        if self.trainer is None:
            return {}
        loop: Any = self.trainer.fit_loop
        epochs = loop.epoch_progress.current
        within = epochs.processed < epochs.ready
        return {
            "epoch": epochs.processed,
            "batches": loop.epoch_loop.batch_progress.current.processed if within else 0,
            "batch_size": self.batch_size,
            "world_size": self.shard[1],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the training loader start at the saved position."""
        self._resumed = state_dict

    @property
    def start(self) -> tuple[int, int]:
        """Epoch, and batches done in it, at which the training loader starts."""
        # The same count of batches is another position in the epoch if the batch size or the number of processes
        # changed.
        state, world = self._resumed, self.shard[1]
        seen = state["batches"] * state["batch_size"] * state.get("world_size", world)
        return state["epoch"], seen // (self.batch_size * world)
