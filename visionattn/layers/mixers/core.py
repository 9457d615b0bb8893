"""Core context aware attention: a window, and one pooled key per block of the map."""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from visionattn.layers.heads import check_positive
from visionattn.layers.mixers.packed import PackedAttention2d
from visionattn.layers.neighborhood_attention import KernelSize
from visionattn_kernels import Window, neighborhood_attention_2d


def pool_blocks(queries: Tensor, keys_values: Tensor, group_size: int) -> Tensor:
    """Pool keys and values of each block of a map with the weights that the block's mean query has for its keys.

    Args:
        queries: `[B, H, W, heads, d]`.
        keys_values: `[B, H, W, 2 * heads, d]`.
        group_size: Edge of a block; the last block of an axis may be smaller.

    Returns:
        Core keys and core values, `[2, B, blocks, heads, d]`.
    """
    _, height, width, heads, d = queries.shape
    edges = min(group_size, height), min(group_size, width)
    mean = F.avg_pool2d(queries.flatten(-2).permute(0, 3, 1, 2), edges, ceil_mode=True)
    rows, columns = mean.shape[2:]
    padding = (0, columns * edges[1] - width, 0, rows * edges[0] - height)
    scores_of_padding = None
    if any(padding):
        keys_values = F.pad(keys_values, (0, 0, 0, 0, *padding))
        scores_of_padding = F.pad(queries.new_zeros(height, width), padding, value=-torch.inf)
        scores_of_padding = scores_of_padding.view(rows, edges[0], columns, edges[1]).transpose(1, 2)
        scores_of_padding = scores_of_padding.reshape(rows * columns, 1, -1)
    blocks = keys_values.unflatten(2, (columns, edges[1])).unflatten(1, (rows, edges[0]))
    blocks = blocks.permute(5, 0, 1, 3, 2, 4, 6).flatten(4, 5).flatten(2, 3).unflatten(0, (2, heads))
    mean = mean.unflatten(1, (heads, d)).permute(1, 0, 3, 4, 2).flatten(2, 3)  # [heads, B, blocks, d]
    scores = (d**-0.5 * mean).unsqueeze(-2) @ blocks[0].mT  # [heads, B, blocks, 1, positions]
    if scores_of_padding is not None:
        scores = scores + scores_of_padding
    return (scores.softmax(-1) @ blocks).squeeze(-2).permute(0, 2, 3, 1, 4)


class CoreContextAttention2d(PackedAttention2d):
    """Multi-head attention over a window and over one pooled key, the core token, of each block of the map.

    Core Context Aware attention (arXiv 2412.12465, ICML 2025). For a block I of the map, per head, with d channels:

        a = softmax(q̄ k_Iᵀ / √d),  core key = Σ_I a k,  core value = Σ_I a v,  q̄ = mean of the block's queries
        out = softmax([q·k / √d + bias over the window, q·core key / √d over all blocks]) [values, core values]

    It costs k² + HW / g² keys per query for windows of k² keys and blocks of g², and 1.5 more to pool. So it is linear
    in the number of positions only if g grows with the edge of the map. Core tokens have no parameters; the window has
    a table of relative biases, as that of `NeighborhoodAttention2d`.

    The paper is about sequences. There the last token of a group pools it, core tokens stand for groups that end before
    the window, and no token counts twice. On maps, which have no order, our choice is that the mean query pools, and
    that a query sees the core tokens of all blocks, also of those that its window overlaps. Core tokens carry no
    position. Pooling keys and values equals pooling inputs and projecting them.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: KernelSize = 5,
        group_size: int = 4,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the module.

        Args:
            dim: Channels.
            num_heads: Attention heads; must divide `dim`.
            kernel_size: Keys of the window per axis, or one number per axis.
            group_size: Edge of a block; the last block of an axis may be smaller. No parameter depends on it.
            qkv_bias: Whether the projection to queries, keys and values has a bias.
            proj_drop: Dropout after the output projection.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: `num_heads` does not divide `dim`, or `group_size` is below 1.
        """
        super().__init__(dim, num_heads, qkv_bias, proj_drop, device, dtype)
        self.kernel_size = kernel_size
        self.set_group_size(group_size)
        height, width = (2 * k - 1 for k in Window.neighborhood(kernel_size).kernel_size)
        self.rpb = nn.Parameter(torch.empty(num_heads, height, width, device=device, dtype=dtype))
        trunc_normal_(self.rpb, std=0.02)

    def set_group_size(self, group_size: int) -> None:
        """Change the edge of a block, also of a trained module: no parameter depends on it.

        Raises:
            ValueError: It is below 1.
        """
        check_positive(group_size=group_size)
        self.group_size = group_size

    def attend(self, qkv: Tensor) -> Tensor:
        """Compute attention `[B, H, W, dim]` of packed queries, keys and values."""
        packed = qkv.unflatten(-1, (3 * self.num_heads, -1))
        q, k, v = packed.tensor_split(3, dim=3)
        core_k, core_v = pool_blocks(q, packed[:, :, :, self.num_heads :], self.group_size)
        return neighborhood_attention_2d(
            q, k, v, self.kernel_size, rpb=self.rpb, extra_k=core_k, extra_v=core_v
        ).flatten(-2)
