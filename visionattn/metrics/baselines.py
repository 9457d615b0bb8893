"""Baselines of object discovery: segments that ignore the image."""

import torch
from torch import Tensor


def block_grid(count: int, height: int, width: int) -> Tensor:
    """Divide an image of a height and width in pixels into ``count`` blocks of similar size, and return the ids [H, W].

    The blocks form a grid; 7 blocks are rows of 2, 2 and 3.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"there must be at least 1 block, got {count}")
    rows = round(count**0.5)
    row = torch.arange(height) * rows // height
    starts = torch.arange(rows + 1) * count // rows  # the first block of each row
    columns = starts.diff()[row, None]  # [H, 1]
    return starts[row, None] + torch.arange(width) * columns // width


def random_segments(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Assign each pixel to one of ``count`` segments at random, and return the ids [H, W]."""
    return torch.randint(count, (height, width), generator=generator)
