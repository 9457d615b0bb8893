"""Standardization: a map minus its mean over its standard deviation, over instances, a batch, or groups of either.

As in Terminator (arXiv 2401.17948): without scale and shift. The input is a map `[B, C, H, W]`, best positions-first.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.layers.positions_first import as_channels, as_columns, from_channels, from_columns, gelu, is_fused
from visionattn_kernels.hyper.maps import column_moments, standardize_columns

EPS = 1e-5


def instance_standardize(
    x: Tensor, bias: Tensor | None = None, activate: bool = False, inplace: bool = False, eps: float = EPS
) -> Tensor:
    """Standardize each channel of each image; a map of one position becomes 0.

    Args:
        x: `[B, C, H, W]`.
        bias: Added at last, `[1, H, W]` or `[1]`.
        activate: Whether GELU follows.
        inplace: Whether the result may take the place of `x`, where no gradients are computed.
        eps: Added to the variance.

    Returns:
        `[B, C, H, W]`.
    """
    if is_fused([x]):
        mean, var = moments(x)
        return standardize_by(x, mean, torch.rsqrt(var + eps), bias, activate, inplace)
    # F.batch_norm would refuse a map of one position.
    y = torch.batch_norm(as_channels(x), None, None, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)
    return finish(from_channels(y, x.shape[0]), bias, activate)


def finish(x: Tensor, bias: Tensor | None, activate: bool) -> Tensor:
    """Apply GELU if asked for, then a bias."""
    if activate:
        x = gelu(x)
    return x if bias is None else x.add_(bias)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel of each image `[B, C, H, W]`: `[B, C]` both, no gradients."""
    batch, channels, height, width = x.shape
    found = column_moments(x.permute(2, 3, 0, 1).reshape(height * width, batch * channels))
    mean, var = found.view(2, batch, channels)
    return mean, var


def standardize_by(
    x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor | None, activate: bool, inplace: bool
) -> Tensor:
    """Return `(x - mean) * scale`, both `[B, C]` or `[C]`, without gradients; see `instance_standardize`."""
    batch, channels, height, width = x.shape
    rows = x.permute(2, 3, 0, 1).reshape(height * width, batch * channels).contiguous()
    out = rows if inplace else torch.empty_like(rows)
    mean, scale = (y.to(x.dtype).expand(batch, channels).flatten() for y in (mean, scale))
    bias = None if bias is None else bias.to(x.dtype).expand(1, height, width).flatten()
    standardize_columns(rows, mean, scale, bias, activate, out)
    return out.view(height, width, batch, channels).permute(2, 3, 0, 1)


class BatchStandardization(nn.Module):
    """Standardization of each channel over the batch of one device; at evaluation by running statistics.

    Without running statistics the batch's are also used at evaluation, so that predictions depend on what else
    is in the batch, as in the released network.
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, dim: int, running_stats: bool = True, momentum: float = 0.1, **dd: Any) -> None:
        """Build the module for `dim` channels; `momentum` is the share of new statistics in the running ones."""
        super().__init__()
        self.momentum, self.eps = momentum, EPS
        self.register_buffer("running_mean", torch.zeros(dim, **dd) if running_stats else None)
        self.register_buffer("running_var", torch.ones(dim, **dd) if running_stats else None)

    def uses_running_stats(self) -> bool:
        """Return whether the statistics are constants in the current mode."""
        return not self.training and self.running_mean is not None

    def statistics(self, images: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return mean and variance `[dim]` at evaluation, given the moments `[B, dim]` of the images of a batch."""
        if self.running_mean is not None and self.running_var is not None:
            return self.running_mean, self.running_var
        means, variances = images
        mean = means.mean(0)
        return mean, (variances + (means - mean).square()).mean(0)

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight `[dim, C]` and bias of a 1x1 map that standardizes its own output by running statistics."""
        mean, var = self.running_mean, self.running_var
        assert mean is not None
        assert var is not None
        scale = torch.rsqrt(var + self.eps)
        return weight * scale[:, None], (bias - mean) * scale

    def forward(self, x: Tensor, bias: Tensor | None = None, activate: bool = False, inplace: bool = False) -> Tensor:
        """Map `[B, C, H, W]` to the same; see `instance_standardize`."""
        by_batch = self.training or self.running_mean is None
        if by_batch:
            check_values(x)
        if by_batch and not self.training and is_fused([x]):
            mean, var = self.statistics(moments(x))
            return standardize_by(x, mean, torch.rsqrt(var + self.eps), bias, activate, inplace)
        running = (self.running_mean, self.running_var)
        y = F.batch_norm(as_columns(x), running[0], running[1], None, None, by_batch, self.momentum, self.eps)
        return finish(from_columns(y, x.shape[2], x.shape[3]), bias, activate)


def check_values(x: Tensor) -> None:
    """Refuse a batch that has one value per channel.

    Raises:
        ValueError: The batch has one value per channel.
    """
    if x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise ValueError(
            "statistics of a batch need more than one value per channel; got one image with a map of 1x1: take more "
            "or larger images, or evaluate a model with running statistics (paper_compat=False, eval())"
        )


class GroupStandardization(nn.Module):
    """Channels in equal groups, standardized over the batch and over instances by turns (G-IBS)."""

    def __init__(self, dim: int, num_groups: int = 12, running_stats: bool = True, **dd: Any) -> None:
        """Build the module for `dim` channels.

        Raises:
            ValueError: `dim` is not a multiple of `num_groups`, or the latter not even.
        """
        super().__init__()
        if num_groups % 2 or dim % num_groups:
            raise ValueError(f"num_groups must be even and divide dim; got num_groups {num_groups} and dim {dim}")
        self.num_groups = num_groups
        self.batch = BatchStandardization(dim // 2, running_stats, **dd)

    def forward(self, x: Tensor, bias: Tensor | None = None, activate: bool = False, inplace: bool = False) -> Tensor:
        """Map `[B, dim, H, W]` to the same; see `instance_standardize`."""
        if not self.training and is_fused([x]):
            mean, var = self.statistics(x)
            return standardize_by(x, mean, torch.rsqrt(var + self.batch.eps), bias, activate, inplace)
        groups = x.permute(2, 3, 0, 1).unflatten(-1, (self.num_groups // 2, 2, -1))
        batch, instance = [half.flatten(-2).permute(2, 3, 0, 1) for half in groups.unbind(-2)]
        halves = [self.batch(batch), instance_standardize(instance)]
        y = torch.stack([half.permute(2, 3, 0, 1).unflatten(-1, (self.num_groups // 2, -1)) for half in halves], -2)
        return finish(y.flatten(-3).permute(2, 3, 0, 1), bias, activate)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance `[B, dim]` that standardize `[B, dim, H, W]` at evaluation, without gradients."""
        if self.batch.running_mean is None:
            check_values(x)
        found = moments(x)
        means, variances = (y.unflatten(1, (self.num_groups // 2, 2, -1))[:, :, 0] for y in found)
        mean, var = self.batch.statistics((means.flatten(1), variances.flatten(1)))
        means.copy_(mean.view(means.shape[1:]))
        variances.copy_(var.view(variances.shape[1:]))
        return found
