"""Problems of recall: their answers follow from the context alone, and examples depend on nothing but their seed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visionattn.data import DataError, RecallBatch, RecallData
from visionattn.data.recall import MapRecall, Regression, SequenceRecall


@pytest.mark.parametrize("seed", range(20))
def test_question_on_a_map_is_answered_by_the_cell_right_of_its_key(seed: int) -> None:
    problem = MapRecall(height=5, width=6, pairs=8, num_keys=11, num_values=3, queries=7)
    example = problem.draw(np.random.default_rng(seed))
    assert tuple(example.image.shape) == problem.input_size == (15, 5, 6)
    keys, values, mark = example.image[:11], example.image[11:14], example.image[14]
    assert mark.flatten().nonzero().flatten().tolist() == sorted(example.queries.tolist())
    pairs = {}
    for row, column in ((keys.sum(0) == 1) & (mark == 0)).nonzero().tolist():
        assert values[:, row, column + 1].sum() == 1
        pairs[int(keys[:, row, column].argmax())] = int(values[:, row, column + 1].argmax())
    assert len(pairs) == 8 == int(values.sum())
    assert int(example.image.sum()) == 8 + 8 + 2 * 7
    asked = [int(keys[:, query // 6, query % 6].argmax()) for query in example.queries.tolist()]
    assert len(set(asked)) == 7
    assert [pairs[key] for key in asked] == example.target.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_full_map_always_has_room_for_its_pairs(seed: int) -> None:
    problem = MapRecall(height=4, width=7, pairs=8, num_keys=8, num_values=2, queries=8)
    assert int(problem.draw(np.random.default_rng(seed)).image[8:10].sum()) == 8


@pytest.mark.parametrize("seed", range(20))
def test_question_in_a_sequence_is_answered_by_the_word_after_its_key(seed: int) -> None:
    problem = SequenceRecall(length=40, pairs=6, vocab_size=32, power_a=0.01)
    example = problem.draw(np.random.default_rng(seed))
    assert tuple(example.image.shape) == problem.input_size == (32, 1, 40)
    words = example.image[:, 0].argmax(0).tolist()
    assert example.image.sum() == 40
    pairs = dict(zip(words[:12:2], words[1:12:2], strict=True))
    assert len(pairs) == 6 == len(set(pairs.values()))
    assert max(pairs) < 16 <= min(pairs.values())
    assert sorted(words[query] for query in example.queries.tolist()) == sorted(pairs)
    assert min(example.queries) >= 12
    assert [pairs[words[query]] - 16 for query in example.queries.tolist()] == example.target.tolist()


def test_gaps_of_a_sequence_follow_the_power_law() -> None:
    problem = SequenceRecall(length=64, pairs=1, vocab_size=4, power_a=0.5)
    rng = np.random.default_rng(0)
    gaps = [(int(problem.draw(rng).queries) - 2) // 2 for _ in range(1500)]
    law = np.arange(1, 32) ** -0.5
    np.testing.assert_allclose(np.bincount(gaps, minlength=31) / 1500, law / law.sum(), atol=0.03)


@pytest.mark.parametrize("regions", [1, 4])
def test_answers_of_a_regression_are_linear_in_each_region(regions: int) -> None:
    problem = Regression(height=8, width=16, queries=20, x_dim=3, y_dim=2, regions=regions)
    example = problem.draw(np.random.default_rng(0))
    cells = example.image.flatten(1).T.double()
    x, y, mark = cells[:, :3], cells[:, 3:5], cells[:, 5]
    assert mark.nonzero().flatten().tolist() == sorted(example.queries.tolist())
    assert not y[example.queries].any()
    region = (x[:, 0] > 0) * (regions > 1) + 2 * (x[:, 1] > 0) * (regions > 1)
    found = torch.empty(20, 2).double()
    for number in range(regions):
        known = (mark == 0) & (region == number)
        fitted = torch.linalg.lstsq(x[known], y[known]).solution
        asked = region[example.queries] == number
        found[asked] = x[example.queries][asked] @ fitted
    torch.testing.assert_close(found, example.target.double(), atol=1e-5, rtol=0)
    whole = torch.linalg.lstsq(x[mark == 0], y[mark == 0]).solution
    assert torch.allclose(x[mark == 0] @ whole, y[mark == 0], atol=1e-3) == (regions == 1)


def images(split: str, epoch: int = 0, **options: Any) -> Tensor:
    data = RecallData(**{"train_length": 12, "val_length": 6, "batch_size": 4, **options})
    loader = getattr(data, f"{split}_dataloader")()
    if split == "train":
        loader.sampler.set_epoch(epoch)
    batches: list[RecallBatch] = list(loader)
    return torch.cat([batch.image for batch in batches])


@pytest.mark.parametrize("name", ["map", "mqar", "regression"])
def test_examples_depend_on_seed_and_epoch_but_not_on_workers(name: Any) -> None:
    first = images("train", name=name, seed=1)
    assert torch.equal(first, images("train", name=name, seed=1, num_workers=2))
    assert not torch.equal(first, images("train", name=name, seed=2))
    assert not torch.equal(first, images("train", name=name, seed=1, epoch=1))


def test_validation_and_test_are_fixed_and_differ() -> None:
    validation, test = images("val", seed=1), images("test", seed=1)
    assert torch.equal(validation, images("val", seed=2, batch_size=3))
    assert not torch.equal(validation, test)
    assert len(validation.unique(dim=0)) == 6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "nothing"}, "--data.name must be one of map, mqar, regression"),
        ({"pairs": 12, "width": 4}, "8×4 cells have room for 8 pairs in random places"),
        ({"pairs": 24, "height": 6, "width": 10}, "--data.queries 24: 24 pairs leave 12 of 6×10 cells free"),
        ({"num_keys": 5}, "--data.num_keys must be at least 6, got 5"),
        ({"pairs": 0}, "--data.pairs must be at least 1, got 0"),
        ({"name": "mqar", "power_a": 0.0}, "--data.power_a must be greater than 0"),
        ({"name": "mqar", "vocab_size": 33}, "--data.vocab_size 33 must be even"),
        ({"name": "regression", "regions": 3}, "--data.regions 3 must be a power of two"),
        ({"name": "regression", "queries": 64}, "--data.queries must be at least 1 and at most 63, got 64"),
    ],
)
def test_option_out_of_its_bounds_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        RecallData(**options)
