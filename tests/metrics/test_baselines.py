"""Baselines of object discovery."""

import pytest
import torch

from visionattn.metrics.baselines import block_grid, random_segments


def test_blocks_form_rows() -> None:
    assert block_grid(4, 4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    seven = block_grid(7, 3, 6)
    assert seven.tolist() == [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3], [4, 4, 5, 5, 6, 6]]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 11, 24])
def test_blocks_are_as_many_as_asked_for_and_of_similar_size(count: int) -> None:
    sizes = block_grid(count, 60, 48).flatten().bincount()
    assert len(sizes) == count
    assert sizes.max() <= 2 * sizes.min()


def test_number_of_blocks_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 block, got 0"):
        block_grid(0, 4, 4)


def test_random_segments_are_uniform_and_seeded() -> None:
    found = random_segments(5, 40, 50, torch.Generator().manual_seed(0))
    assert found.shape == (40, 50)
    assert (found.flatten().bincount() - 400).abs().max() < 110  # six standard deviations
    assert torch.equal(found, random_segments(5, 40, 50, torch.Generator().manual_seed(0)))
