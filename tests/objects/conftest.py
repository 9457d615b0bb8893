"""Scenes of rectangles with known segments."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor


class Blocks(NamedTuple):
    """Segments of a batch, without the images."""

    segments: Tensor
    classes: Tensor
    things: Tensor


def make_blocks(count: int, size: int = 32, num_segments: int = 5, seed: int = 0) -> Blocks:
    """Make rectangles, with ids from 2, on a background of id 1; edges are multiples of 4 pixels."""
    draws = torch.Generator().manual_seed(seed)
    segments = torch.ones(count, size, size, dtype=torch.int64)
    for image in segments:
        for number in range(2, num_segments + 1):
            top, left = (4 * torch.randint(0, size // 4 - 2, (2,), generator=draws)).tolist()
            height, width = (4 * torch.randint(2, 5, (2,), generator=draws)).tolist()
            image[top : top + height, left : left + width] = number
    classes = torch.randint(0, 3, (count, num_segments + 1), generator=draws)
    classes[:, 0] = -1
    things = torch.arange(num_segments + 1).expand(count, -1) > 1
    return Blocks(segments, classes, things)


@pytest.fixture
def blocks():
    return make_blocks
