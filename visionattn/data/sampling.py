"""Order of images and their random augmentation: a function of (seed, epoch, position) alone.

An interrupted run therefore resumes with the same images and the same crops, for any number of workers. A position
counts the images of all processes, which take turns: together they see in each step what one process with their global
batch would see.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from timm.data.distributed_sampler import OrderedDistributedSampler, RepeatAugSampler
from torch import Tensor
from torch.utils.data import DistributedSampler, Sampler

from visionattn.data.errors import DataError


class Draw(NamedTuple):
    """One image to read: its index in the data set, and the seed of its augmentation (None for none).

    Index -1 is a filler without an image, so that all ranks have the same number of validation batches.
    """

    image: int
    seed: int | None = None


class WeightedOrder(DistributedSampler[int]):
    """Images drawn at random with replacement, in proportion to their weights; as many as there are.

    Args:
        weights: weight of each image, [N].
        rank: rank of this process.
        world_size: number of processes that share the draws.
    """

    def __init__(self, weights: Tensor, rank: int, world_size: int) -> None:
        super().__init__(range(len(weights)), world_size, rank, drop_last=True)  # type: ignore[arg-type]  # asks its length
        self.weights = weights.double()

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.multinomial(self.weights, len(self.weights), replacement=True, generator=generator)
        return iter(drawn[: self.total_size][self.rank :: self.num_replicas].tolist())


class TrainSampler(Sampler[Draw]):
    """Shuffled images of one rank, with optional repeated augmentation, from any position of an epoch.

    All ranks have the same number of images; up to ``world_size - 1`` images, different in each epoch, are skipped.

    Args:
        size: number of images in the data set.
        seed: seed of shuffling and augmentation.
        rank: rank of this process.
        world_size: number of processes that share an epoch.
        repeats: number of times that each image is drawn, with different augmentations, spread over the ranks (Berman
            et al., 2019, https://arxiv.org/abs/1902.05509); the length of an epoch does not change.
        start: (epoch, number of images of this rank that were consumed in it), after a resume.
        weights: weight of each image, [N], to draw them with replacement, not each once; without ``repeats``.

    Raises:
        DataError: fewer images than processes.
    """

    def __init__(
        self,
        size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 0,
        start: tuple[int, int] = (0, 0),
        weights: Tensor | None = None,
    ) -> None:
        if size < world_size:
            raise DataError(f"{size} images to train on are too few for {world_size} processes: use at most {size}")
        images = range(size)
        self.order: RepeatAugSampler | DistributedSampler[int]
        if weights is not None:
            self.order = WeightedOrder(weights, rank, world_size)
        elif repeats > 1:
            self.order = RepeatAugSampler(images, world_size, rank, num_repeats=repeats)
        else:
            self.order = DistributedSampler(images, world_size, rank, drop_last=True)  # type: ignore[arg-type]  # asks its length
        self.seed, self.rank, self.world_size, self.start = seed, rank, world_size, start
        self.epoch = start[0]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the images of a whole epoch, also if this one starts in its middle."""
        return len(self.order)

    def __iter__(self) -> Iterator[Draw]:
        self.order.set_epoch(self.seed + self.epoch)
        rng = np.random.default_rng([self.seed, self.epoch])
        seeds = rng.integers(2**32, size=len(self.order) * self.world_size)[self.rank :: self.world_size]
        consumed = self.start[1] if self.epoch == self.start[0] else 0
        for position, index in enumerate(self.order):
            if position >= consumed:
                yield Draw(index, int(seeds[position]))


class EvalSampler(Sampler[Draw]):
    """Every image exactly once across the ranks, in order, with fillers at the end of the shorter ones."""

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        self.order = OrderedDistributedSampler(range(size), world_size, rank)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Draw]:
        for position, index in enumerate(self.order):
            yield Draw(index if position < self.order.num_valid_samples else -1)


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators for the CPU."""
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed also seeds every other device, and records all callers for one that is not in use.
    torch.default_generator.manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the same generators after a block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
