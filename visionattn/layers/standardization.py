"""Standardization: a map minus its mean over its standard deviation, over instances, a batch, or groups of either.

As in Terminator (arXiv 2401.17948): without scale and shift. The input is a map `[B, C, H, W]`, best positions-first.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.layers.positions_first import as_channels, as_columns, from_channels, from_columns

EPS = 1e-5


def instance_standardize(x: Tensor, eps: float = EPS) -> Tensor:
    """Standardizes each channel of each picture; a map of one position becomes 0.

    Args:
        x: `[B, C, H, W]`.
        eps: Added to the variance.

    Returns:
        `[B, C, H, W]`.
    """
    # F.batch_norm would refuse a map of one position.
    y = torch.batch_norm(as_channels(x), None, None, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)
    return from_channels(y, x.shape[0])


class BatchStandardization(nn.Module):
    """Standardizes each channel over the batch, that of one device; at evaluation by running statistics.

    Without running statistics it is by those of the batch at evaluation, too, so that predictions depend on what else
    is in the batch; that is what the released network did.
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, dim: int, running_stats: bool = True, momentum: float = 0.1, **dd: Any) -> None:
        """Takes `dim` channels; `momentum` is the part of new statistics in the running ones."""
        super().__init__()
        self.momentum, self.eps = momentum, EPS
        self.register_buffer("running_mean", torch.zeros(dim, **dd) if running_stats else None)
        self.register_buffer("running_var", torch.ones(dim, **dd) if running_stats else None)

    def uses_running_stats(self) -> bool:
        """Whether the statistics are constants now."""
        return not self.training and self.running_mean is not None

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight `[dim, C]` and bias of a 1x1 map that standardizes its own output by running statistics."""
        mean, var = self.running_mean, self.running_var
        assert mean is not None
        assert var is not None
        scale = torch.rsqrt(var + self.eps)
        return weight * scale[:, None], (bias - mean) * scale

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to the same."""
        by_batch = self.training or self.running_mean is None
        if by_batch:
            check_values(x)
        mean, var = self.running_mean, self.running_var
        y = F.batch_norm(as_columns(x), mean, var, None, None, by_batch, self.momentum, self.eps)
        return from_columns(y, x.shape[2], x.shape[3])


@torch.jit.ignore
def check_values(x: Tensor) -> None:
    """Refuses a batch that has one value per channel.

    Raises:
        ValueError: That is so.
    """
    if x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise ValueError(
            "statistics of a batch need more than one value per channel; got one picture with a map of 1x1: take more "
            "or larger pictures, or evaluate a model with running statistics (paper_compat=False, eval())"
        )


class GroupStandardization(nn.Module):
    """Channels in equal groups, standardized over the batch and over instances by turns (G-IBS)."""

    def __init__(self, dim: int, num_groups: int = 12, running_stats: bool = True, **dd: Any) -> None:
        """Takes `dim` channels.

        Raises:
            ValueError: `dim` is not a multiple of `num_groups`, or the latter not even.
        """
        super().__init__()
        if num_groups % 2 or dim % num_groups:
            raise ValueError(f"num_groups must be even and divide dim; got num_groups {num_groups} and dim {dim}")
        self.num_groups = num_groups
        self.batch = BatchStandardization(dim // 2, running_stats, **dd)

    def split(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of a weight `[dim, ...]` by how the channels that they make are standardized: batch, instance."""
        groups = weight.unflatten(0, (self.num_groups // 2, 2, -1))
        return groups[:, 0].flatten(0, 1), groups[:, 1].flatten(0, 1)

    def join(self, batch: Tensor, instance: Tensor) -> Tensor:
        """Puts the channels of two maps `[B, dim / 2, H, W]`, ordered as by `split`, back in their places."""
        groups = self.num_groups // 2
        halves = [x.permute(2, 3, 0, 1).unflatten(-1, (groups, -1)) for x in (batch, instance)]
        return torch.stack(halves, -2).flatten(-3).permute(2, 3, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, dim, H, W]` to the same."""
        batch, instance = self.split(x.transpose(0, 1))
        return self.join(self.batch(batch.transpose(0, 1)), instance_standardize(instance.transpose(0, 1)))
