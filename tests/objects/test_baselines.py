"""Segments that know nothing of the image."""

import pytest
import torch

from visionattn.objects.baselines import block_grid, random_segments


def test_blocks_stand_in_rows() -> None:
    assert block_grid(4, 4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    seven = block_grid(7, 3, 6)
    assert seven.tolist() == [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3], [4, 4, 5, 5, 6, 6]]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 11, 24])
def test_there_are_as_many_and_none_is_much_larger(count: int) -> None:
    sizes = block_grid(count, 60, 48).flatten().bincount()
    assert len(sizes) == count
    assert sizes.max() <= 2 * sizes.min()


def test_no_block_is_none() -> None:
    with pytest.raises(ValueError, match="at least 1 block, got 0"):
        block_grid(0, 4, 4)


def test_random_segments_are_of_all_kinds_and_of_their_seed() -> None:
    found = random_segments(5, 40, 50, torch.Generator().manual_seed(0))
    assert found.shape == (40, 50)
    assert (found.flatten().bincount() - 400).abs().max() < 110  # six standard deviations
    assert torch.equal(found, random_segments(5, 40, 50, torch.Generator().manual_seed(0)))
