"""Maps `[B, C, H, W]` that lie in memory as `[H, W, B, C]`.

In this order a 1x1 map is a convolution in channels-last memory, on CPUs several times faster than on planes; all
images' channels side by side are also the channels of one image in channels-last memory. Operators per
image, such as instance statistics or kernels per image, are then fast. Elementwise operators keep the order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels.hyper.maps import can_run, convolve_maps


def positions_first(x: Tensor) -> Tensor:
    """Return a map `[B, C, H, W]` in this order of memory, copied if it has another."""
    return x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)


def as_channels(x: Tensor) -> Tensor:
    """View `[B, C, H, W]` as one image with the channels of all, `[1, B * C, H, W]`."""
    batch, channels, height, width = x.shape
    return x.permute(2, 3, 0, 1).reshape(1, height, width, batch * channels).permute(0, 3, 1, 2)


def from_channels(x: Tensor, batch: int) -> Tensor:
    """Invert `as_channels`."""
    _, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(height, width, batch, channels // batch).permute(2, 3, 0, 1)


def as_columns(x: Tensor) -> Tensor:
    """View `[B, C, H, W]` as one image with a row per position, `[1, C, H * W, B]`."""
    batch, channels, height, width = x.shape
    return x.permute(2, 3, 0, 1).reshape(1, height * width, batch, channels).permute(0, 3, 1, 2)


def from_columns(x: Tensor, height: int, width: int) -> Tensor:
    """Invert `as_columns`."""
    _, channels, _, batch = x.shape
    return x.permute(0, 2, 3, 1).reshape(height, width, batch, channels).permute(2, 3, 0, 1)


# Torch gives gradients of the following the logical order of axes, hence here that of memory.


def split_channels(x: Tensor, sizes: list[int]) -> list[Tensor]:
    """Split `[B, C, H, W]` into parts of `sizes` channels."""
    return [part.permute(2, 3, 0, 1) for part in x.permute(2, 3, 0, 1).split(sizes, 3)]


def channel_means(x: Tensor) -> Tensor:
    """Return the mean of each channel of `[B, C, H, W]`, `[B, C]`."""
    return x.permute(2, 3, 0, 1).mean((0, 1))


def position_means(x: Tensor) -> Tensor:
    """Return the mean of each position of `[B, C, H, W]`, `[B, 1, H, W]`."""
    return x.permute(2, 3, 0, 1).mean(3, keepdim=True).permute(2, 3, 0, 1)


def outer(positions: Tensor, channels: Tensor) -> Tensor:
    """Return the product `[B, C, H, W]` of `[B, 1, H, W]` and `[B, C]`."""
    return (positions.permute(2, 3, 0, 1) * channels).permute(2, 3, 0, 1)


def bias_of(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the bias of a map with this weight, or zeros if it has none."""
    return weight.new_zeros(weight.shape[0]) if bias is None else bias


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, activate: bool = False) -> Tensor:
    """Convolve `[B, C, H, W]` with a 1x1 `weight` `[C_out, C]` or `[C_out, C, 1, 1]`; GELU may follow."""
    return pointwise_sum([x], [weight.flatten(1)], bias, activate)


def pointwise_sum(
    maps: list[Tensor], weights: list[Tensor], bias: Tensor | None = None, activate: bool = False
) -> Tensor:
    """Convolve the concatenation of maps with a 1x1 weight, whose columns are given per map.

    They are never concatenated: adding products is cheaper than such a large temporary.
    """
    if is_fused(maps + weights + ([] if bias is None else [bias])):
        return _convolve(maps, weights, bias, "gelu" if activate else "sum")
    height, width = maps[0].shape[2], maps[0].shape[3]
    y = F.conv2d(as_columns(maps[0]), weights[0][:, :, None, None], bias)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        y.add_(F.conv2d(as_columns(x), weight[:, :, None, None]))
    return from_columns(gelu(y) if activate else y, height, width)


def pointwise_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the product of the two halves of `pointwise`, `[B, C_out / 2, H, W]`."""
    if is_fused([x, weight, bias]):
        return _convolve([x], [weight], bias, "product")
    first, second = split_channels(pointwise(x, weight, bias), [weight.shape[0] // 2] * 2)
    return first * second


def is_fused(tensors: list[Tensor]) -> bool:
    """Return whether compiled operators take these tensors: on CPUs, without gradients or a graph."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return tensors[0].numel() > 0 and can_run(*tensors)


def _convolve(maps: list[Tensor], weights: list[Tensor], bias: Tensor | None, ending: str) -> Tensor:
    rows = [x.permute(2, 3, 0, 1).flatten(0, 2) for x in maps]
    y = convolve_maps(rows, weights, bias_of(weights[0], bias), ending)
    batch, _, height, width = maps[0].shape
    return y.view(height, width, batch, -1).permute(2, 3, 0, 1)


def gelu(x: Tensor) -> Tensor:
    """Return the GELU of a tensor that is not needed any more, in place if no gradients are computed."""
    if torch.is_grad_enabled():
        return F.gelu(x)
    return torch.ops.aten.gelu_(x)


def adaptive_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pool `[B, C, H, W]` adaptively to `[B, C, *size]`."""
    return from_channels(F.adaptive_avg_pool2d(as_channels(x), size), x.shape[0])
