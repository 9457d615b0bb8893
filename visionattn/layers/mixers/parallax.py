"""Parallax: neighborhood attention minus a learned share of the covariance of values and keys."""

from typing import ClassVar

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from visionattn.layers.neighborhood_attention import KernelSize, NeighborhoodAttention2d, pad_to_window
from visionattn.layers.pointwise import MapLinear
from visionattn_kernels import parallax_attention_2d


@register_notrace_module  # attention reads shapes
class ParallaxAttention2d(NeighborhoodAttention2d):
    """Multi-head Parallax attention over neighborhoods, `[B, H, W, dim]` to the same.

    Parallax (arXiv 2605.29157) corrects softmax attention as a local linear regression would, with a learned vector r
    in place of a solver. Per head, with p the softmax weights of a query over its neighborhood:

        out = v̄ - Cov_p(v, k) r = Σ p (1 + d - s) v,   v̄ = Σ p v,  s = r·k,  d = Σ p s,  r = x W_r

    W_r starts at zero, so that the module starts as `NeighborhoodAttention2d` with the same parameters, trained ones
    included. r is not scaled. It has dim² + dim parameters more than neighborhood attention, and costs one product more
    per query and key: three in place of two. The weights p (1 + d - s) sum to 1 and may be negative.

    The paper is about sequences. The sums over a window of a map, and the relative bias in p, are our choice; so is to
    leave out the norms of queries, keys and r, which are optional there.
    """

    zero_if_absent: ClassVar[tuple[str, ...]] = ("r.weight", "r.bias")
    """Parameters that files of neighborhood attention do not have, and that are zero then."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: KernelSize = 7,
        dilation: int | None = 1,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        legacy_pad: bool = False,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the module; the arguments are those of `NeighborhoodAttention2d`, and `qkv_bias` also concerns r."""
        super().__init__(
            dim, num_heads, kernel_size, dilation, qkv_bias, rel_pos_bias, legacy_pad, proj_drop, device, dtype
        )
        self.r = MapLinear(dim, dim, bias=qkv_bias, device=device, dtype=dtype)
        self.init_weights()

    def init_weights(self) -> None:
        """Set the projection to r to zero."""
        for parameter in self.r.parameters():
            nn.init.zeros_(parameter)

    def project(self, x: Tensor) -> Tensor:
        """Return packed r, queries, keys and values `[B, H, W, 4 * dim]` of a map, which grows with `legacy_pad`."""
        if self.legacy_pad:
            x = pad_to_window(x, self.kernel_size, self.dilation)
        return torch.cat([self.r(x), self.qkv(x)], -1)

    def attend(self, packed: Tensor) -> Tensor:
        """Compute attention `[B, H, W, dim]` of packed r, queries, keys and values, before the output projection."""
        r, q, k, v = packed.unflatten(-1, (4, self.num_heads, -1)).unbind(3)
        return parallax_attention_2d(q, k, v, r, self.window((k.shape[1], k.shape[2])), rpb=self.rpb).flatten(-2)
