"""Plain transcription of Terminator's equations, on NCHW maps; the optimized model is compared with it.

Nothing is shared between products, folded, cached or reordered. Parameters are those of a `visionattn` model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5


def global_product(w_hat: Tensor, z: Tensor, mode: str) -> Tensor:
    """Compute `w_hat @ z` per channel, `w_hat * z`, or a convolution about the middle of the map, as a sum."""
    if mode == "matmul":
        return w_hat @ z
    if mode == "elementwise":
        return w_hat * z
    height, width = z.shape[2:]
    rows = torch.stack([shifted(z, i - height // 2, 2) for i in range(height)])
    out = torch.zeros_like(z)
    for j in range(width):
        out = out + torch.einsum("bci,ibchw->bchw", w_hat[..., j], shifted(rows, j - width // 2, 4))
    return out


def shifted(x: Tensor, by: int, dim: int) -> Tensor:
    """Compute `out[p] = x[p - by]` along one axis, zero where that is beyond it."""
    length = x.shape[dim]
    by = max(-length, min(length, by))
    zeros = x.new_zeros([abs(by) if i == dim else n for i, n in enumerate(x.shape)])
    if by >= 0:
        return torch.cat((zeros, x.narrow(dim, 0, length - by)), dim)
    return torch.cat((x.narrow(dim, -by, length + by), zeros), dim)


def local_product(z: Tensor, kernel: Tensor) -> Tensor:
    """Compute a depthwise convolution: with one kernel `[1, C, kH, kW]`, or with one per image."""
    batch, channels, height, width = z.shape
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    if len(kernel) == 1:
        return F.conv2d(z, kernel.transpose(0, 1), padding=padding, groups=channels)
    flat = kernel.reshape(batch * channels, 1, *kernel.shape[2:])
    out = F.conv2d(z.reshape(1, batch * channels, height, width), flat, padding=padding, groups=batch * channels)
    return out.view_as(z)


def instance_standardize(x: Tensor) -> Tensor:
    """Compute IS."""
    if x.shape[2] * x.shape[3] == 1:
        return torch.zeros_like(x)
    return F.instance_norm(x, eps=EPS)


def batch_standardize(x: Tensor, norm: nn.Module) -> Tensor:
    """Compute BS; at evaluation by running statistics where there are any."""
    training = norm.training or norm.running_mean is None
    mean, var = (None, None) if norm.training else (norm.running_mean, norm.running_var)
    return F.batch_norm(x, mean, var, training=training, eps=EPS)


def group_standardize(x: Tensor, norm: nn.Module) -> Tensor:
    """Compute G-IBS: even groups BS, odd ones IS."""
    groups = x.chunk(12, 1)
    even = batch_standardize(torch.cat(groups[0::2], 1), norm.batch).chunk(6, 1)
    odd = [instance_standardize(group) for group in groups[1::2]]
    return torch.cat([x for pair in zip(even, odd, strict=True) for x in pair], 1)


def filters(net: nn.Module) -> list[Tensor]:
    """Compute `g_l(c) = sin(U_l c)`, `[1, h, kH, kW]` per layer."""
    axes = [torch.linspace(-1, 1, n, dtype=net.tap_bias.dtype) for n in net.size[2 - net.ndim :]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].reshape(1, net.ndim, *net.size)
    weight, bias = net.filters.weight[:, :, None, None], net.filters.bias
    return [
        torch.sin(F.conv2d(grid.to(weight), u, v))
        for u, v in zip(weight.split(net.hidden), bias.split(net.hidden), strict=True)
    ]


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    """Apply a 1x1 map."""
    weight = layer.weight if layer.weight.dim() == 4 else layer.weight[:, :, None, None]
    return F.conv2d(x, weight, layer.bias)


def slow_network(net: nn.Module) -> Tensor:
    """Return the kernel `[1, C, kH, kW]`."""
    g = filters(net)
    h = g[0]
    for level, layer in enumerate(net.layers, 1):
        h = g[level] * linear(h, layer) + net.tap_bias.view(1, 1, *net.size)
    return linear(h, net.proj)


def local_slow_network(net: nn.Module, x: Tensor) -> Tensor:
    """Return the kernels `[B, C, kH, kW]`; one for the mean of the batch with `paper_compat`."""
    v = linear(F.adaptive_avg_pool2d(x, net.size), net.squeeze)
    if net.paper_compat:
        v = v.mean(0, keepdim=True)
    v = F.gelu(linear(v, net.context))
    g = filters(net)
    h = g[0]
    fast_weights, fast_biases = net.fast.weight.split(net.hidden), net.fast.bias.split(net.hidden)
    for level, layer in enumerate(net.layers, 1):
        h = g[level] * linear(h, layer) + net.tap_bias.view(1, 1, *net.size)
        h = h.detach() + 0.1 * h / h.norm(dim=(2, 3), keepdim=True)
        h = h * F.conv2d(v, fast_weights[level - 1][:, :, None, None], fast_biases[level - 1])
    return linear(h, net.proj)


def rgu(unit: nn.Module, x: Tensor) -> Tensor:
    """Compute RGU."""
    k, v = linear(x, unit.key), linear(x, unit.value)
    q = F.gelu(instance_standardize(k * linear(v, unit.query))) + unit.position_bias
    return linear(q, unit.proj)


def hci(gate: nn.Module, x: Tensor) -> Tensor:
    """Compute HCI."""
    y = F.adaptive_avg_pool2d(x, 1)
    return x * torch.sigmoid(y * y * slow_network(gate.channel).view(1, -1, 1, 1))


def hyper_interaction(gate: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """Compute HI."""
    y_c, m = F.adaptive_avg_pool2d(y, 1), y.mean(1, keepdim=True)
    s_c = y_c * y_c * slow_network(gate.channel).view(1, -1, 1, 1)
    s_s = m * m * slow_network(gate.spatial)
    return x * torch.sigmoid(s_s * s_c)


def local_mixing(layer: nn.Module, context: Tensor, z: Tensor) -> Tensor:
    """Compute `GELU(BS(1x1(dwconv))) + scalar`."""
    y = linear(local_product(z, local_slow_network(layer.kernel, context)), layer.proj)
    y = F.gelu(batch_standardize(y, layer.norm))
    return y if layer.scalar is None else y + layer.scalar


def tile(x: Tensor, channels: int) -> Tensor:
    """Repeat the channels of `[B, C, H, W]`."""
    return torch.cat([x] * -(-channels // x.shape[1]), 1)[:, :channels]


def block(net: nn.Module, x: Tensor, dense: list[Tensor]) -> Tensor:
    """Run one block, on the input and the outputs of earlier blocks."""
    a = x * slow_network(net.kernel)
    fast = instance_standardize(rgu(net.rgu_slow, a) + rgu(net.rgu_fast, x))
    mix = instance_standardize(linear(x, net.mix))
    gated = instance_standardize(hci(net.hci, x))
    out, out_x, out_hci = (global_product(a, z, net.global_mode) for z in (fast, mix, gated))
    glu = torch.sigmoid(out) * out
    hyper = hyper_interaction(net.hyper, out, x)
    layers = (net.local_1, net.local_2, net.local_3, net.local_4)
    given = ((x, gated), (gated, x), (mix, x), (x, mix))
    l1, l2, l3, l4 = (
        None if layer is None else local_mixing(layer, *pair) for layer, pair in zip(layers, given, strict=True)
    )
    prev, prevprev = [*(tile(y, x.shape[1]) for y in dense), None, None][:2]
    branches: list[Any] = [out, l2, prev, fast, out_x, l1, glu, l3, out_hci, l4, prevprev, hyper]
    y = linear(torch.cat([branch for branch in branches if branch is not None], 1), net.proj)
    y = F.gelu(group_standardize(y, net.norm)) + net.scalar
    return F.dropout2d(y, net.drop_rate, net.training)


class PlainTerminator(nn.Module):
    """The network, with the parameters of a `visionattn` model."""

    def __init__(self, model: nn.Module) -> None:
        """Keep the model."""
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        x, outputs = self.model.stem(x), []
        for net, sources in zip(self.model.blocks, self.model.dense, strict=True):
            x = block(net, x, [outputs[i] for i in sources])
            outputs.append(x)
        return self.model.head.fc(x.mean((2, 3)))
