"""Batches of P identities with K images each, as triplet losses want them."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from visionattn.data.errors import DataError
from visionattn.data.sampling import Draw

Indices = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class PKBatchSampler(Sampler[list[Draw]]):
    """Batches of one rank: P different identities, K images of each; a function of (seed, epoch, rank) alone.

    In an epoch the shuffled images of an identity form as many groups of K as possible; an identity with fewer than
    K images is a single group, in which some images repeat. Every group goes into at most one batch, so that
    no image is seen by two ranks, nor twice in an epoch outside such a group. There are as many batches as these
    groups allow; the groups left over are drawn at random.

    Args:
        labels: identity of each image.
        identities: P, identities per batch.
        instances: K, images per identity.
        seed: seed of shuffling and augmentation.
        rank: rank of this process.
        world_size: number of processes that share an epoch; all have the same number of batches.
        start: (epoch, number of batches of this rank that were consumed in it), after a resume.

    Raises:
        DataError: there are too few identities or images for one batch per rank.
    """

    def __init__(
        self,
        labels: Sequence[int],
        identities: int,
        instances: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        known, numbers = np.unique(np.asarray(labels, dtype=np.int64), return_inverse=True)
        self.images: list[Indices] = [np.flatnonzero(numbers == number) for number in range(len(known))]
        self.groups: Indices = np.array([max(1, len(images) // instances) for images in self.images])
        self.identities, self.instances = identities, instances
        self.seed, self.rank, self.world_size, self.start = seed, rank, world_size, start
        self.epoch = start[0]
        if len(known) < identities:
            fits = f"pass --data.batch_size {len(known) * instances} or less"
            raise DataError(
                f"a batch of {identities * instances} images, {instances} of each identity, needs {identities} "
                f"identities, and the data set has {len(known)}: "
                f"{fits if len(known) > 1 else 'at least two are needed to tell them apart'}"
            )
        self.steps = _most_batches(self.groups, identities) // world_size
        if not self.steps:
            raise DataError(
                f"{len(labels)} images of {len(known)} identities do not make a batch of {identities}×{instances} "
                f"for each of {world_size} processes: use fewer, or a smaller --data.batch_size"
            )

    @property
    def sampler(self) -> "PKBatchSampler":
        """The sampler itself: Lightning tells the epoch to the sampler inside a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the batches of a whole epoch, also if this one starts in its middle."""
        return self.steps

    def __iter__(self) -> Iterator[list[Draw]]:
        batches = self._plan()[self.rank :: self.world_size]
        seeds = np.random.default_rng([self.seed, self.epoch, self.rank]).integers(2**32, size=batches.shape)
        consumed = self.start[1] if self.epoch == self.start[0] else 0
        for batch, own in zip(batches[consumed:], seeds[consumed:], strict=True):
            yield [Draw(int(index), int(seed)) for index, seed in zip(batch, own, strict=True)]

    def _plan(self) -> Indices:
        """Return the batches of all ranks in this epoch, [steps · world_size, P·K]."""
        rng = np.random.default_rng([self.seed, self.epoch])
        count = self.steps * self.world_size
        waiting = [list(self._deal(images, rng)) for images in self.images]
        left = self._used(count, rng)
        batches = []
        for remaining in range(count, 0, -1):
            # Whoever has a group for every batch that is left comes now; others by the number of their groups.
            with np.errstate(divide="ignore"):
                keys = rng.random(len(left)) ** (1 / left)
            keys[left == remaining] = 2
            chosen = np.argpartition(-keys, self.identities - 1)[: self.identities]
            left[chosen] -= 1
            batches.append(np.concatenate([waiting[identity].pop() for identity in chosen]))
        return np.stack(batches)

    def _used(self, count: int, rng: np.random.Generator) -> Indices:
        """Return the groups of each identity that go into ``count`` batches: at most one into each."""
        most = np.minimum(self.groups, count)
        surplus = rng.permutation(np.repeat(np.arange(len(most)), most))[count * self.identities :]
        return most - np.bincount(surplus, minlength=len(most))

    def _deal(self, images: Indices, rng: np.random.Generator) -> Iterator[Indices]:
        """Return groups of K shuffled images of an identity."""
        if len(images) < self.instances:
            rounds = [rng.permutation(images) for _ in range(-(-self.instances // len(images)))]
            yield np.concatenate(rounds)[: self.instances]
            return
        shuffled = rng.permutation(images)
        for start in range(0, len(shuffled) - self.instances + 1, self.instances):
            yield shuffled[start : start + self.instances]


def _most_batches(groups: Indices, identities: int) -> int:
    """Return the largest number of batches of different identities, given the groups of each identity.

    ``n`` of them can be made if and only if the groups, no more than ``n`` of each identity, fill them (McNaughton's
    rule); if ``n`` can, fewer can.
    """
    low, high = 0, int(groups.sum()) // identities
    while low < high:
        middle = (low + high + 1) // 2
        fits = int(np.minimum(groups, middle).sum()) >= middle * identities
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
