"""Parts of Terminator's block that hyper-kernels gate (arXiv 2401.17948).

Maps are `[B, C, H, W]`, best positions-first. Hyper-kernels come from slow networks and are arguments here.
"""

from typing import Any

import torch
from torch import Tensor, nn

from visionattn.layers.positions_first import (
    bias_of,
    channel_means,
    is_fused,
    outer,
    pointwise,
    pointwise_product,
    position_means,
)
from visionattn.layers.slow_network import SlowNetwork, resize_kernel
from visionattn.layers.standardization import EPS, instance_standardize, moments, standardize_by


class RecursiveGatedUnit(nn.Module):
    """RGU: `W_y (GELU(IS(K * (W_q V))) + p)` with `K = W_k x`, `V = W_v x`; all 1x1 maps, p a number per position.

    V enters through `W_q V` alone: the two maps are multiplied into one before they meet the activations. `maps` and
    `gate` are the unit without its first and last convolution, for a caller that merges those with others.
    """

    def __init__(self, dim: int, size: tuple[int, int], proj_bias: bool = False, **dd: Any) -> None:
        """Build the unit for `dim` channels on maps of `size`; `proj_bias` gives W_y a bias."""
        super().__init__()
        self.key = nn.Conv2d(dim, dim, 1, **dd)
        self.value = nn.Conv2d(dim, dim, 1, **dd)
        self.query = nn.Conv2d(dim, dim, 1, **dd)
        self.proj = nn.Conv2d(dim, dim, 1, bias=proj_bias, **dd)
        self.position_bias = nn.Parameter(torch.zeros(1, *size, **dd))
        self.out_size = size

    def maps(self) -> tuple[Tensor, Tensor]:
        """Return weight `[2 * dim, dim]` and bias of the map to K and `W_q V`."""
        query = self.query.weight.flatten(1)
        weight = torch.cat((self.key.weight.flatten(1), query @ self.value.weight.flatten(1)))
        value_bias = bias_of(self.value.weight, self.value.bias)
        bias = torch.mv(query, value_bias) + bias_of(self.query.weight, self.query.bias)
        return weight, torch.cat((bias_of(self.key.weight, self.key.bias), bias))

    def gate(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Map `[B, dim, H, W]`, by weight and bias of `maps`, to the input of W_y, of the same shape."""
        product = pointwise_product(x, weight, bias)
        position_bias = resize_kernel(self.position_bias, self.out_size)
        return instance_standardize(product, position_bias, activate=True, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, dim, H, W]` to the same."""
        weight, bias = self.maps()
        return pointwise(self.gate(x, weight, bias), self.proj.weight, self.proj.bias)


class HyperChannelInteraction(nn.Module):
    """HCI: `x * sigmoid(y * y * k)`, y being the mean of each channel and k a hyper-kernel over channels."""

    def __init__(self, dim: int, **kwargs: Any) -> None:
        """Build the module for `dim` channels; see `FilterNetwork` for the rest."""
        super().__init__()
        self.channel = SlowNetwork(1, (1, dim), ndim=1, hidden=32, **kwargs)

    def gate(self, mean: Tensor) -> Tensor:
        """Map y to the factor of x, `[B, dim]` both."""
        return torch.sigmoid(mean * mean * self.channel().flatten().to(mean.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, dim, H, W]` to the same."""
        return x * self.gate(channel_means(x))[:, :, None, None]

    def standardized(self, x: Tensor, eps: float = EPS) -> Tensor:
        """Return the instance standardization of the output of `forward`."""
        if not is_fused([x]):
            return instance_standardize(self(x), eps=eps)
        mean, var = moments(x)
        gate = self.gate(mean)
        scale = gate * torch.rsqrt(gate.square() * var + eps)
        return standardize_by(x, mean, scale, bias=None, activate=False, inplace=False)


class HyperInteraction(nn.Module):
    """HI: `x * sigmoid(s_s * s_c)` with `s_c = c * c * k_c`, `s_s = m * m * k_s`.

    c is the mean of each channel of the context, m its mean at each position; k_c and k_s are hyper-kernels.
    """

    def __init__(self, dim: int, size: tuple[int, int], ndim: int = 2, **kwargs: Any) -> None:
        """Build the module for `dim` channels on maps of `size`; see `FilterNetwork` for the rest."""
        super().__init__()
        self.channel = SlowNetwork(1, (1, dim), ndim=1, hidden=16, **kwargs)
        self.spatial = SlowNetwork(1, size, ndim=ndim, hidden=64, **kwargs)

    def forward(self, context: Tensor, x: Tensor) -> Tensor:
        """Gate `x` `[B, dim, H, W]` by `context` of the same shape."""
        mean = channel_means(context)
        channel = mean * mean * self.channel().flatten().to(x.dtype)
        mean = position_means(context)
        spatial = mean * mean * self.spatial().to(x.dtype)
        return x * outer(spatial, channel).sigmoid_()
