"""Parallax."""

import torch
from torch import Tensor, nn


class ParallaxAttention2d(nn.Module):
    """Parallax."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Stub."""
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, H, W, dim]` to the same."""
        return x
