"""Segments that know nothing of the image, which object discovery has to be better than."""

import torch
from torch import Tensor


def block_grid(count: int, height: int, width: int) -> Tensor:
    """Divides an image into blocks of about the same size, in rows of about as many: ids [H, W].

    Args:
        count: how many blocks; 7 are rows of 2, 2 and 3.
        height: of the image.
        width: of the image.

    Raises:
        ValueError: no block.
    """
    if count < 1:
        raise ValueError(f"there must be at least 1 block, got {count}")
    rows = round(count**0.5)
    row = torch.arange(height) * rows // height
    starts = torch.arange(rows + 1) * count // rows  # the first block of each row
    columns = starts.diff()[row, None]  # [H, 1]
    return starts[row, None] + torch.arange(width) * columns // width


def random_segments(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Gives each position to one of so many segments, each with the same probability: ids [H, W]."""
    return torch.randint(count, (height, width), generator=generator)
