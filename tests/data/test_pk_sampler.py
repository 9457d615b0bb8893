"""Batches of P identities × K images: as many as can be made, and the same on every rank's clock."""

import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import Any

import pytest

from visionattn.data import DataError
from visionattn.data.pk_sampler import PKBatchSampler

UNEVEN = [3, 4, 5, 8, 1, 2, 9, 4, 6, 7]  # images of each identity


def labels_of(counts: Sequence[int]) -> list[int]:
    """Labels of so many images of each identity, in no order."""
    labels = [10 * identity for identity, count in enumerate(counts) for _ in range(count)]
    random.Random(0).shuffle(labels)
    return labels


def drawn(labels: list[int], *args: int, epoch: int = 0, **options: Any) -> list[list[int]]:
    """The images of each batch."""
    sampler = PKBatchSampler(labels, *args, **options)  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    return [[draw.image for draw in batch] for batch in sampler]


@pytest.mark.parametrize(
    ("identities", "instances", "world_size"), [(2, 2, 1), (2, 2, 2), (3, 4, 2), (4, 2, 3), (10, 3, 1)]
)
def test_batch_has_p_identities_with_k_images(identities: int, instances: int, world_size: int) -> None:
    labels = labels_of(UNEVEN)
    for rank in range(world_size):
        for epoch in range(5):
            options: dict[str, Any] = {"rank": rank, "world_size": world_size}
            batches = drawn(labels, identities, instances, epoch=epoch, **options)
            assert len(batches) == len(PKBatchSampler(labels, identities, instances, **options)) > 0
            for batch in batches:
                assert sorted(Counter(labels[image] for image in batch).values()) == [instances] * identities


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_images_repeat_in_small_groups_only(world_size: int) -> None:
    labels, instances = labels_of(UNEVEN), 3
    for epoch in range(10):
        groups: list[tuple[int, ...]] = []
        for rank in range(world_size):
            for batch in drawn(labels, 3, instances, epoch=epoch, rank=rank, world_size=world_size):
                groups += [tuple(batch[start : start + instances]) for start in range(0, len(batch), instances)]
        seen = Counter(image for group in groups for image in set(group))
        assert set(seen.values()) == {1}
        for group in groups:
            (label,) = {labels[image] for image in group}
            assert len(set(group)) == min(instances, UNEVEN[label // 10])


def test_few_images_fill_their_group_evenly() -> None:
    for seed in range(10):
        (batch,) = drawn(labels_of([2, 3]), 2, 8, seed=seed)
        counts = [sorted(Counter(batch[start : start + 8]).values()) for start in (0, 8)]
        assert sorted(counts) == [[2, 3, 3], [4, 4]]


def test_batches_differ_by_epoch_seed_and_rank() -> None:
    labels = labels_of([8] * 12)

    def plan(**options: int) -> list[list[int]]:
        return drawn(labels, 4, 2, **options)

    assert plan(epoch=3) == plan(epoch=3)
    assert plan(epoch=3, seed=1) == plan(epoch=3, seed=1)
    assert plan(epoch=3) != plan(epoch=4)
    assert plan(epoch=3) != plan(epoch=3, seed=1)
    assert plan(rank=0, world_size=2) != plan(rank=1, world_size=2)


def test_images_are_all_drawn() -> None:
    # 9 images in groups of 4: one is left out of an epoch, another one in the next.
    labels = labels_of([9] * 4)
    seen = {image for epoch in range(12) for batch in drawn(labels, 2, 4, epoch=epoch) for image in batch}
    assert seen == set(range(36))


def test_identities_mix() -> None:
    labels = labels_of([8] * 6)
    pairs = {
        tuple(sorted({labels[image] for image in batch}))
        for epoch in range(40)
        for batch in drawn(labels, 2, 4, epoch=epoch)
    }
    assert len(pairs) == 15


def test_augmentations_differ_between_images_ranks_and_epochs() -> None:
    seeds = []
    for rank in range(2):
        sampler = PKBatchSampler(labels_of([8] * 12), 4, 2, rank=rank, world_size=2)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            seeds += [draw.seed for batch in sampler for draw in batch]
    assert len(set(seeds)) == len(seeds) == 12 * 8 * 3
    assert None not in seeds


@pytest.mark.parametrize("rank", [0, 1])
def test_resumed_epoch_continues_at_the_next_batch(rank: int) -> None:
    labels = labels_of([8] * 12)
    options: dict[str, Any] = {"seed": 5, "rank": rank, "world_size": 2}
    whole = PKBatchSampler(labels, 4, 2, **options)
    resumed = PKBatchSampler(labels, 4, 2, **options, start=(2, 4))
    whole.set_epoch(2)
    expected = list(whole)
    assert len(expected) == len(whole) == len(resumed) == 6
    assert list(resumed) == expected[4:]
    for sampler in (whole, resumed):
        sampler.set_epoch(3)
    assert list(resumed) == list(whole)
    assert len(list(resumed)) == 6
    assert list(PKBatchSampler(labels, 4, 2, **options, start=(2, 6))) == []


def test_lightning_tells_the_epoch() -> None:
    # It calls set_epoch of a batch sampler's ``sampler``.
    sampler = PKBatchSampler(labels_of([8] * 4), 2, 2)
    sampler.sampler.set_epoch(7)
    assert sampler.epoch == 7


def most(groups: tuple[int, ...], identities: int) -> int:
    """The most batches of so many different identities, by trying all."""

    @cache
    def search(left: tuple[int, ...]) -> int:
        there = [index for index, count in enumerate(left) if count]
        best = 0
        for chosen in combinations(there, identities):
            rest = tuple(sorted(count - (index in chosen) for index, count in enumerate(left)))
            best = max(best, 1 + search(rest))
        return best

    return search(tuple(sorted(groups)))


def test_number_of_batches_is_the_largest_possible() -> None:
    rng = random.Random(0)
    cases = [[rng.choice((1, 1, 2, 3, 6)) for _ in range(rng.randint(3, 6))] for _ in range(40)]
    fewer = 0
    for groups in [*cases, [9, 1, 1], [9, 9, 1], [5, 5, 5], [7, 3, 2, 1]]:
        for identities in (2, 3):
            expected = most(tuple(groups), identities)
            fewer += expected < sum(groups) // identities
            for instances in (2, 3):
                batches = drawn(labels_of([count * instances for count in groups]), identities, instances)
                assert len(batches) == expected, (groups, identities)
    assert fewer > 5  # or the cases are too easy


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_have_as_many_batches(world_size: int) -> None:
    labels = labels_of([4] * 11)  # 22 groups, 7 batches of 3
    lengths = {
        len(drawn(labels, 3, 2, rank=rank, world_size=world_size, epoch=epoch))
        for rank in range(world_size)
        for epoch in range(3)
    }
    assert lengths == {7 // world_size}


def test_too_few_images_for_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match=r"16 images, 4 of each identity, needs 4 identities, and the data set has 3"):
        PKBatchSampler(labels_of([9, 9, 9]), 4, 4)
    with pytest.raises(DataError, match=r"pass --data.batch_size 12 or less"):
        PKBatchSampler(labels_of([9, 9, 9]), 4, 4)
    with pytest.raises(DataError, match=r"12 images of 3 identities do not make a batch of 3×4 for each of 2 proc"):
        PKBatchSampler(labels_of([4, 4, 4]), 3, 4, world_size=2)


def test_single_identity_is_refused() -> None:
    with pytest.raises(DataError, match=r"the data set has 1: ") as caught:
        PKBatchSampler(labels_of([9]), 4, 4)
    assert "--data.batch_size" not in str(caught.value)
