"""Which picture comes when, and with which random augmentation: a function of (seed, epoch, position) alone.

Hence a run that is interrupted in the middle of an epoch goes on with the very pictures, and the very crops, that it
would have seen, whatever the number of workers.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from timm.data.distributed_sampler import OrderedDistributedSampler, RepeatAugSampler
from torch.utils.data import DistributedSampler, Sampler


class Draw(NamedTuple):
    """One picture to read: its index in the data set, and the seed of its augmentation (None for none).

    Index -1 is a filler: it stands for no picture, and makes all ranks do as many validation batches.
    """

    picture: int
    seed: int | None = None


class TrainSampler(Sampler[Draw]):
    """Shuffled pictures of one rank, with repeated augmentation where wanted, that can start in mid-epoch.

    Args:
        size: number of pictures in the data set.
        seed: of the shuffling and of the augmentations.
        rank: of this process among ``world_size``.
        world_size: number of processes that share an epoch.
        repeats: each picture is drawn so often, with different augmentations, spread over the ranks
            (Berman et al., 2019, https://arxiv.org/abs/1902.05509); an epoch has as many pictures as without.
        start: (epoch, number of pictures of this rank that were consumed in it), after a resume.
    """

    def __init__(
        self,
        size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 0,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        pictures = range(size)
        self.order: RepeatAugSampler | DistributedSampler[int] = (
            RepeatAugSampler(pictures, world_size, rank, num_repeats=repeats)
            if repeats > 1
            else DistributedSampler(pictures, world_size, rank)  # type: ignore[arg-type]  # it only asks for the length
        )
        self.seed, self.rank, self.start = seed, rank, start
        self.epoch = start[0]

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Pictures of a whole epoch, also when this one starts in its middle."""
        return len(self.order)

    def __iter__(self) -> Iterator[Draw]:
        self.order.set_epoch(self.seed + self.epoch)
        seeds = np.random.default_rng([self.seed, self.epoch, self.rank]).integers(2**32, size=len(self.order))
        consumed = self.start[1] if self.epoch == self.start[0] else 0
        for position, index in enumerate(self.order):
            if position >= consumed:
                yield Draw(index, int(seeds[position]))


class EvalSampler(Sampler[Draw]):
    """Every picture exactly once across the ranks, in order, with fillers at the end of the shorter ones."""

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        self.order = OrderedDistributedSampler(range(size), world_size, rank)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Draw]:
        for position, index in enumerate(self.order):
            yield Draw(index if position < self.order.num_valid_samples else -1)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's generators within, and leaves them as they were. None does nothing."""
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
