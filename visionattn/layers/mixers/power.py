"""Power-of-two windows: every scale of a map in one softmax."""

import torch
from torch import Tensor, nn

from visionattn.layers.heads import check_positive
from visionattn.layers.mixers.packed import PackedAttention2d
from visionattn_kernels import Window, multiscale_attention_2d


def count_scales(size: tuple[int, int]) -> int:
    """Return the number of powers of two, from 1, that are distances on a map of this height and width; at least 1."""
    return max(1, (max(size) - 1).bit_length())


class PowerAttention2d(PackedAttention2d):
    """Multi-head attention to the neighbours of a query at all distances that are powers of two.

    PowerAttention (arXiv 2503.03588) on maps. A query at y, x sees the keys at

        (y + a 2^i, x + b 2^i)  for a, b in {-1, 0, 1} and i = 0 ... m - 1,  m = ⌊log2(max(H, W) - 1)⌋ + 1,

    that lie on the map, in one softmax with a learned bias per head, scale and offset: 8m + 1 keys, which are 49 on
    maps of 33 to 64 positions per axis. It costs O(HW log(max(H, W))). On a line, l layers reach every distance below
    (2^(2l + 1) + 1) / 3, so the layers that a map needs grow with the logarithm of its edge.

    The paper is about causal sequences and distances 0 and 2^i. Both directions, two axes and the bias are our choice.

    With `power_heads`, heads share out the scales: with G = min(num_heads, num_scales), heads are divided into G
    groups in order, and group g sees the scales g, g + G, g + 2G, ... A head sees 9 keys if there are as many
    heads as scales. The reach of a layer is then that of its heads. A head all of whose scales exceed the map sees its
    own position.

    Parameters are those of the projections, and the bias `rpb [heads, scales, 3, 3]`, 0 at the start. The centre is one
    key: its bias is that of a head's first scale, and the entries [1, 1] of others never receive a gradient. Nor do
    tables of scales beyond the map, or, with `power_heads`, the last table of some heads if G does not
    divide `num_scales`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_scales: int = 6,
        power_heads: bool = False,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the module.

        Args:
            dim: Channels.
            num_heads: Attention heads; must divide `dim`.
            num_scales: Tables of relative bias, as `count_scales` returns for the maps of training: 6 for maps of 33 to
                64 positions per axis. Smaller maps use the first ones, and further scales of larger maps the last one.
            power_heads: Whether heads share out the scales; otherwise each head sees all.
            qkv_bias: Whether the projection to queries, keys and values has a bias.
            proj_drop: Dropout after the output projection.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: `num_heads` does not divide `dim`, or `num_scales` is below 1.
        """
        super().__init__(dim, num_heads, qkv_bias, proj_drop, device, dtype)
        check_positive(num_scales=num_scales)
        self.num_scales = num_scales
        self.num_groups = min(num_heads, num_scales) if power_heads else 1
        tables = -(-num_scales // self.num_groups)
        self.rpb = nn.Parameter(torch.zeros(num_heads, tables, 3, 3, device=device, dtype=dtype))

    def group_scales(self, size: tuple[int, int]) -> list[list[int]]:
        """Return the scales i, distances 2^i, that each group of heads sees on a map of this size."""
        scales, groups = range(count_scales(size)), self.num_groups
        return [list(scales[group::groups]) or [group] for group in range(groups)]

    def attend(self, qkv: Tensor) -> Tensor:
        """Compute attention `[B, H, W, dim]` of packed queries, keys and values."""
        packed = qkv.unflatten(-1, (3, self.num_heads, -1)).tensor_split(self.num_groups, dim=4)
        biases = self.rpb.tensor_split(self.num_groups)
        outs = []
        for part, rpb, scales in zip(packed, biases, self.group_scales((qkv.shape[1], qkv.shape[2])), strict=True):
            q, k, v = part.unbind(3)
            tables = [min(number, rpb.shape[1] - 1) for number in range(len(scales))]
            outs.append(multiscale_attention_2d(q, k, v, [2**i for i in scales], rpb=rpb[:, tables]))
        out = torch.cat(outs, 3) if len(outs) > 1 else outs[0]
        return out.flatten(-2)

    def windows(self, size: tuple[int, int]) -> list[Window]:
        """Return the window of each scale on a map of this size; keys beyond the border are not seen."""
        return [Window.neighborhood(3, dilation=2**i, boundary="mask") for i in range(count_scales(size))]
