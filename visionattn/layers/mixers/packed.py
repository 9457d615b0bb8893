"""The frame of mixers whose queries, keys and values come from one projection."""

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from visionattn.layers.heads import check_heads
from visionattn.layers.pointwise import MapLinear
from visionattn_kernels import Window


@register_notrace_module  # attention reads shapes
class PackedAttention2d(nn.Module):
    """Multi-head attention between projections to queries, keys and values, and to the output.

    A subclass defines `attend`, whose result must be linear in the values: `visionattn.analysis` then reads the weights
    of a query from the gradient of its output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        qkv_dim: int | None = None,
    ) -> None:
        """Build the projections.

        Args:
            dim: Channels.
            num_heads: Attention heads; must divide `dim`.
            qkv_bias: Whether the projection to queries, keys and values has a bias.
            proj_drop: Dropout after the output projection.
            device: Device of the parameters.
            dtype: Type of the parameters.
            qkv_dim: Channels of queries, keys and values together; 3 * dim by default.

        Raises:
            ValueError: `num_heads` does not divide `dim`.
        """
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = MapLinear(dim, qkv_dim or 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = MapLinear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def project(self, x: Tensor) -> Tensor:
        """Return packed queries, keys and values `[B, H, W, 3 * dim]`, channels ordered (3, head, head_dim).

        What else a subclass packs comes before the values, which are the last `dim` channels.
        """
        return self.qkv(x)

    def attend(self, qkv: Tensor) -> Tensor:
        """Compute attention `[B, H, W, dim]` of packed queries, keys and values, before the output projection."""
        raise NotImplementedError

    def windows(self, size: tuple[int, int]) -> list[Window]:
        """Return rules whose union holds the keys that a query sees on a map of this size: by default every key."""
        return [Window.neighborhood(size)]

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, H, W, dim]` to the same."""
        return self.proj_drop(self.proj(self.attend(self.project(x))))
