"""Neighborhoods written out over all pairs of a map, for references of the mixers that sum over them."""

from itertools import product

import torch
from torch import Tensor, nn

DIM, HEADS = 8, 2


def random_module(module: nn.Module) -> nn.Module:
    """Set every parameter at random, far from zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def random_map(size: tuple[int, int], dim: int = DIM) -> Tensor:
    x = torch.randn(2, *size, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.requires_grad_()


def neighbours(length: int, kernel_size: int, dilation: int) -> list[list[int]]:
    """Return the nearest keys of each query among those a multiple of the dilation away."""
    found = []
    for query in range(length):
        group = [key for key in range(length) if (key - query) % dilation == 0]
        start = max(0, min(group.index(query) - kernel_size // 2, len(group) - kernel_size))
        found.append(group[start : start + kernel_size])
    return found


def bias_of_pairs(rpb: Tensor, size: tuple[int, int], kernel_size: int, dilation: int) -> Tensor:
    """Return the bias of each query and key, `[heads, N, N]`: minus infinity outside of a query's neighborhood."""
    rows, columns = (neighbours(n, kernel_size, dilation) for n in size)
    places = list(product(range(size[0]), range(size[1])))
    bias = torch.full((len(rpb), len(places), len(places)), -torch.inf, dtype=rpb.dtype)
    for (i, (y, x)), (j, (key_y, key_x)) in product(enumerate(places), enumerate(places)):
        if key_y in rows[y] and key_x in columns[x]:
            down, right = (key_y - y) // dilation, (key_x - x) // dilation
            bias[:, i, j] = rpb[:, down + kernel_size - 1, right + kernel_size - 1]
    return bias


def probabilities(q: Tensor, k: Tensor, rpb: Tensor, size: tuple[int, int], kernel_size: int, dilation: int) -> Tensor:
    """Return softmax weights `[B, heads, N, N]` of queries and keys `[B, heads, N, d]` over neighborhoods."""
    return (q.shape[-1] ** -0.5 * q @ k.mT + bias_of_pairs(rpb, size, kernel_size, dilation)).softmax(-1)


def split(x: Tensor, heads: int = HEADS) -> Tensor:
    """Turn a map `[B, H, W, dim]` into `[B, heads, N, d]`."""
    return x.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)


def moments(p: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the means of keys and values of each query, and their covariances `[..., d, d]` and `[..., v_dim, d]`."""
    mean_k, mean_v = p @ k, p @ v
    of_keys = torch.einsum("bnij,bnjc,bnjd->bnicd", p, k, k) - mean_k[..., :, None] * mean_k[..., None, :]
    of_values = torch.einsum("bnij,bnjc,bnjd->bnicd", p, v, k) - mean_v[..., :, None] * mean_k[..., None, :]
    return mean_k, mean_v, of_keys, of_values


def join(out: Tensor, size: tuple[int, int], proj: nn.Linear) -> Tensor:
    """Turn `[B, heads, N, d]` into a map `[B, H, W, dim]` behind the output projection."""
    out = out.transpose(1, 2).flatten(2).unflatten(1, size)
    return out @ proj.weight.T + proj.bias


def with_gradients(out: Tensor, module: nn.Module, x: Tensor) -> list[Tensor]:
    grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, [x, *module.parameters()], grad)]
