"""Contracts of the samplers, for any number of images, processes and batches."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from holding import holds_for
from hypothesis import strategies as st
from PIL import Image

from visionattn.data import DataError
from visionattn.data.loading import ImageDataset
from visionattn.data.pk_sampler import PKBatchSampler
from visionattn.data.sampling import Draw, EvalSampler, TrainSampler, generators_kept, seed_generators

SIZES, WORLDS, SEEDS, EPOCHS = st.integers(5, 40), st.integers(1, 5), st.integers(0, 2**31), st.integers(0, 9)


ORDERS = st.sampled_from(["shuffled", "repeated", "weighted"])


def order_of(kind: str, size: int) -> dict[str, Any]:
    """Return the options of a sampler of images that come once, several times, or by weights, one of which is 0."""
    weighted = {"weights": torch.arange(size) % 7}
    return {"shuffled": {}, "repeated": {"repeats": 3}, "weighted": weighted}[kind]


def epoch_of(sampler: Any, epoch: int) -> list[Any]:
    sampler.set_epoch(epoch)
    return list(sampler)


@holds_for(st.integers(1, 40), WORLDS)
def test_evaluation_sampler_gives_each_image_once_and_equal_work_to_all_ranks(size: int, world_size: int) -> None:
    ranks = [[draw.image for draw in EvalSampler(size, rank, world_size)] for rank in range(world_size)]
    assert sorted(image for rank in ranks for image in rank if image >= 0) == list(range(size))
    assert {len(rank) for rank in ranks} == {len(EvalSampler(size, 0, world_size))} == {-(-size // world_size)}
    for rank in ranks:
        real = [image for image in rank if image >= 0]
        assert rank == sorted(real) + [-1] * (len(rank) - len(real))


@holds_for(SIZES, WORLDS, SEEDS, EPOCHS, ORDERS)
def test_ranks_share_the_order_of_a_single_process(
    size: int, world_size: int, seed: int, epoch: int, kind: str
) -> None:
    order = order_of(kind, size)
    alone = epoch_of(TrainSampler(size, seed, **order), epoch)
    ranks = [epoch_of(TrainSampler(size, seed, rank, world_size, **order), epoch) for rank in range(world_size)]
    together = [draw for step in zip(*ranks, strict=True) for draw in step]
    common = min(len(alone), len(together))
    assert together[:common] == alone[:common]
    assert abs(len(together) - size) < world_size, "no more or less than makes the ranks even"
    assert len(alone) == size
    assert {len(rank) for rank in ranks} == {len(TrainSampler(size, seed, 0, world_size, **order))}


@holds_for(SIZES, WORLDS, SEEDS, EPOCHS)
def test_weighted_draws_never_take_an_image_of_weight_0(size: int, world_size: int, seed: int, epoch: int) -> None:
    sampler = TrainSampler(size, seed, 0, world_size, **order_of("weighted", size))
    draws = epoch_of(sampler, epoch)
    assert all(draw.image % 7 for draw in draws)
    assert len({draw.seed for draw in draws}) == len(draws), "an image that comes twice is augmented in two ways"


@holds_for(SIZES, WORLDS, SEEDS, EPOCHS, st.integers(2, 4))
def test_aug_repeats_repeat_images_with_different_crops(
    size: int, world_size: int, seed: int, epoch: int, repeats: int
) -> None:
    once, repeated = (
        [
            draw
            for rank in range(world_size)
            for draw in epoch_of(TrainSampler(size, seed, rank, world_size, times), epoch)
        ]
        for times in (1, repeats)
    )
    assert set(Counter(draw.image for draw in once).values()) == {1}
    counts = Counter(draw.image for draw in repeated)
    assert set(counts) <= set(range(size))
    # All images but the last are repeated equally often; the last ranks may repeat it less, or some first ones again.
    assert sum(count != repeats for count in counts.values()) <= 1 + world_size
    for draws in (once, repeated):
        assert len({draw.seed for draw in draws}) == len(draws)


@holds_for(SIZES, WORLDS, SEEDS, EPOCHS, ORDERS, st.integers(0, 50))
def test_resumed_sampler_continues_where_it_stopped(
    size: int, world_size: int, seed: int, epoch: int, kind: str, consumed: int
) -> None:
    for rank in range(world_size):
        whole, resumed = (
            TrainSampler(size, seed, rank, world_size, start=start, **order_of(kind, size))
            for start in ((0, 0), (epoch, consumed))
        )
        assert epoch_of(resumed, epoch) == epoch_of(whole, epoch)[consumed:]
        assert epoch_of(resumed, epoch + 1) == epoch_of(whole, epoch + 1)
        assert len(resumed) == len(whole)


@holds_for(st.integers(20, 40), SEEDS, EPOCHS, ORDERS)
def test_each_epoch_has_another_order(size: int, seed: int, epoch: int, kind: str) -> None:
    sampler = TrainSampler(size, seed, **order_of(kind, size))
    first, second = epoch_of(sampler, epoch), epoch_of(sampler, epoch + 1)
    assert [draw.image for draw in first] != [draw.image for draw in second]
    assert not {draw.seed for draw in first} & {draw.seed for draw in second}


@st.composite
def identities(draw: Any) -> tuple[list[int], dict[str, int]]:
    """Draw unordered identities of images, P, K, the seed and the number of processes."""
    counts = draw(st.lists(st.integers(1, 7), min_size=2, max_size=8))
    labels = draw(st.permutations([10 * label for label, count in enumerate(counts) for _ in range(count)]))
    options = {
        "identities": draw(st.integers(2, len(counts))),
        "instances": draw(st.integers(1, 4)),
        "seed": draw(SEEDS),
        "world_size": draw(st.integers(1, 3)),
    }
    return list(labels), options


@holds_for(identities(), EPOCHS, st.integers(0, 4))
def test_pk_batches_hold_p_identities_of_k_images(
    case: tuple[list[int], dict[str, int]], epoch: int, consumed: int
) -> None:
    labels, options = case
    p, k, world_size = options["identities"], options["instances"], options["world_size"]
    groups = {label: max(1, count // k) for label, count in Counter(labels).items()}
    possible = next(n for n in range(len(labels), -1, -1) if sum(min(n, g) for g in groups.values()) >= n * p)
    if possible < world_size:
        with pytest.raises(DataError, match="do not make a batch"):
            PKBatchSampler(labels, **options)
        return
    seen: Counter[int] = Counter()
    for rank in range(world_size):
        sampler = PKBatchSampler(labels, **options, rank=rank)
        batches: list[list[Draw]] = epoch_of(sampler, epoch)
        assert len(batches) == len(sampler) == possible // world_size
        for batch in batches:
            assert sorted(Counter(labels[draw.image] for draw in batch).values()) == [k] * p
            for start in range(0, len(batch), k):
                group = [draw.image for draw in batch[start : start + k]]
                (label,) = {labels[image] for image in group}
                assert len(set(group)) == min(k, labels.count(label))
                seen.update(set(group))
        resumed = PKBatchSampler(labels, **options, rank=rank, start=(epoch, consumed))
        assert epoch_of(resumed, epoch) == batches[consumed:]
        assert epoch_of(resumed, epoch + 1) == epoch_of(sampler, epoch + 1)
    assert set(seen.values()) <= {1}, "no image comes in two batches of an epoch, whichever rank's"


class Blank:
    """A source that repeats one image."""

    class_to_idx = None

    def __len__(self) -> int:
        return 100

    def read(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (2, 2)), index

    def name_of(self, index: int) -> str:
        return str(index)

    def targets(self) -> list[int]:
        return list(range(100))


def noise(image: Image.Image) -> torch.Tensor:
    """Return a number from each of the three generators."""
    return torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])


@holds_for(st.lists(st.builds(Draw, st.integers(-1, 99), st.integers(0, 2**32 - 1)), min_size=1))
def test_augmentations_depend_on_their_seed_alone(draws: list[Draw]) -> None:
    """The batches do not matter, and the generators of the process keep their states."""
    dataset = ImageDataset(Blank(), noise)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    together, alone = dataset.__getitems__(draws), [dataset[draw] for draw in reversed(draws)][::-1]
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    for one, other, draw in zip(together, alone, draws, strict=True):
        assert one.index == other.index == draw.image
        if draw.image >= 0:
            with generators_kept():
                seed_generators(draw.seed)
                expected = noise(Image.new("RGB", (2, 2)))
            assert torch.equal(one.image, expected)
            assert torch.equal(other.image, expected)
