"""Small networks in float64, and their attention weights, computed without `visionattn.analysis`."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from visionattn.layers.halo_attention import HaloAttention2d
from visionattn.layers.mixers import create_mixer
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d


@dataclass
class Dense:
    """Weights of one layer.

    Attributes:
        patches: For patches, `[B, h, Q, K]`, 0 beyond a window.
        prefix: For prefix tokens, `[B, h, Q, E]`.
        grid: Rows and columns of keys.
        keys: Number of the key at the position of each query, `[Q]`.
    """

    patches: Tensor
    prefix: Tensor
    grid: tuple[int, int]
    keys: Tensor


class PatchNet(nn.Module):
    """One attention layer on patches of 4×4 pixels; a map comes in the format that the layer takes."""

    def __init__(self, layer: nn.Module, dim: int = 8, *, channels_first: bool = False) -> None:
        super().__init__()
        self.patchify = nn.Conv2d(3, dim, 4, 4)
        self.layer, self.channels_first = layer, channels_first

    def forward(self, images: Tensor) -> Tensor:
        x = self.patchify(images)
        return self.layer(x if self.channels_first else x.permute(0, 2, 3, 1))


def vit(**options: Any) -> VisionTransformer:
    """Return a ViT of two blocks with patches of 4×4 pixels."""
    return VisionTransformer(
        **{"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0} | options
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "vit": (lambda: vit(img_size=(20, 24), reg_tokens=1), (20, 24)),
    "vit without prefix": (lambda: vit(img_size=20, class_token=False, global_pool="avg"), (20, 20)),
    "nat": (lambda: PatchNet(NeighborhoodAttention2d(8, 2, 3)), (24, 28)),
    "dinat": (lambda: PatchNet(NeighborhoodAttention2d(8, 2, 3, 2)), (28, 24)),
    "padded": (lambda: PatchNet(NeighborhoodAttention2d(8, 2, 3, 3, legacy_pad=True)), (20, 28)),
    "local_linear": (lambda: PatchNet(create_mixer("local_linear", 8, 2)), (20, 24)),
    "swin": (lambda: PatchNet(SwinTransformerBlock(8, (6, 8), 2, window_size=4, shift_size=2)), (24, 32)),
    "halo": (
        lambda: PatchNet(HaloAttention2d(8, None, 2, None, 4, 1, 2), channels_first=True),
        (32, 28),
    ),
    "timm's halo": (
        lambda: PatchNet(HaloAttention2d(8, None, 2, None, 2, 1, timm_compat=True), channels_first=True),
        (24, 24),
    ),
}
"""Networks by name, with the size of their images."""


def build(name: str, count: int = 5) -> tuple[nn.Module, Tensor]:
    """Return a network with random weights, sharper than at the start, and images."""
    create, size = NETWORKS[name]
    network = create().double().eval()
    for key, values in network.named_parameters():
        if "qkv" in key or key.endswith(("q.weight", "kv.weight", "rpb", "table")):
            values.data += torch.randn_like(values) * (1 if values.dim() > 1 else 0.1)
    return network, torch.randn(count, 3, *size, dtype=torch.float64)


@torch.no_grad()
def dense_weights(network: Any, images: Tensor) -> list[Dense]:
    """Return the weights of all layers."""
    if isinstance(network, VisionTransformer):
        found: list[Dense] = []
        hooks = [
            block.attn.qkv.register_forward_hook(lambda _, inputs, out: found.append(_of_tokens(network, out)))
            for block in network.blocks
        ]
        network(images)
        for hook in hooks:
            hook.remove()
        return found
    x = network.patchify(images)
    if isinstance(network.layer, SwinTransformerBlock):
        return [_of_swin(network.layer, x.permute(0, 2, 3, 1))]
    return [_of_halo(network.layer, x) if network.channels_first else _of_map(network.layer, x.permute(0, 2, 3, 1))]


def _of_tokens(network: Any, qkv: Tensor) -> Dense:
    prefix, grid = network.num_prefix_tokens, network.patch_embed.grid_size
    q, k, _ = qkv.unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)[:, :, prefix:]
    return Dense(weights[..., prefix:], weights[..., :prefix], grid, torch.arange(weights.shape[2]))


def _read(attend: Callable[[Tensor], Tensor], values: Tensor, queries: tuple[int, int], stride: int) -> Dense:
    """Read weights from the outputs of values that are 1 at one key and 0 elsewhere, `[B, H, W, h, c]`."""
    height, width = queries[0] * stride, queries[1] * stride
    grid = (min(values.shape[1], height), min(values.shape[2], width))
    columns = []
    for row, column in product(*map(range, grid)):
        single = torch.zeros_like(values)
        single[:, row, column] = 1
        columns.append(attend(single)[:, : queries[0], : queries[1], :, 0].flatten(1, 2).mT)
    keys = torch.tensor([row * stride * grid[1] + column * stride for row, column in product(*map(range, queries))])
    weights = torch.stack(columns, -1)
    return Dense(weights, weights[..., :0], grid, keys)


def _of_map(layer: Any, x: Tensor) -> Dense:
    q_and_k, values = layer.project(x).tensor_split([2 * x.shape[-1]], -1)

    def attend(values: Tensor) -> Tensor:
        return layer.attend(torch.cat([q_and_k, values.flatten(3)], -1)).unflatten(-1, (2, -1))

    return _read(attend, values.unflatten(-1, (2, -1)), (x.shape[1], x.shape[2]), 1)


def _of_halo(layer: HaloAttention2d, x: Tensor) -> Dense:
    q, kv = layer.project(x)
    k, values = kv.unflatten(-1, (2, -1)).tensor_split(2, -1)

    def attend(values: Tensor) -> Tensor:
        return layer.attend(q, torch.cat([k, values], -1).flatten(3)).unflatten(-1, (2, -1))

    found = _read(attend, values, (q.shape[1], q.shape[2]), layer.query_stride)
    assert found.grid == tuple(x.shape[2:]) or layer.query_stride > 1
    return found


def _of_swin(block: Any, x: Tensor) -> Dense:
    """Compute attention in windows of 4×4 of the map that is rolled by 2 and padded, pair by pair."""
    height, width = x.shape[1:3]
    padded = block.norm1(x).roll((-2, -2), (1, 2))
    padded = nn.functional.pad(padded, (0, 0, 0, -width % 4, 0, -height % 4))
    rows, columns = padded.shape[1:3]
    q, k, _ = block.attn.qkv(padded.flatten(1, 2)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    places = list(product(range(rows), range(columns)))
    parts = [_part(row, rows) + _part(column, columns) for row, column in places]
    for i, j in product(range(len(places)), repeat=2):
        if parts[i] == parts[j]:
            down, right = (own - other + 3 for own, other in zip(places[i], places[j], strict=True))
            scores[:, :, i, j] += block.attn.relative_position_bias_table[down * 7 + right]
        else:
            scores[:, :, i, j] = -torch.inf
    weights = scores.softmax(-1)
    rolled = [
        (row - 2) % height * columns + (column - 2) % width for row, column in product(range(height), range(width))
    ]
    weights = weights[:, :, rolled][..., rolled]
    return Dense(weights, weights[..., :0], (height, width), torch.arange(height * width))


def _part(place: int, length: int) -> tuple[int, int]:
    """Return the window of a place on a rolled axis, and the part of the last window, which wraps around."""
    return place // 4, int(place >= length - 2)
