"""Mixers as token mixers of timm's `MetaFormer`."""

from typing import Any

from torch import Tensor, nn


def as_token_mixer(name: str, num_heads: int | None = None, **options: Any) -> type[nn.Module]:
    """Return a class for `token_mixers` of timm's `MetaFormer`, from maps `[B, dim, H, W]` to the same.

    It is a class, not a function, because `MetaFormer` asks whether it is a subclass of another one. `MetaFormer` sets
    the first weights of all linear layers, so `parallax` does not start as neighborhood attention there.

    Args:
        name: One of `MIXERS`.
        num_heads: Heads; one per 32 channels by default, as in MetaFormer's own attention.
        **options: Options of the mixer.
    """
    from visionattn.layers.mixers import create_mixer

    class TokenMixer(nn.Module):
        def __init__(self, dim: int, proj_drop: float = 0.0, **dd: Any) -> None:
            super().__init__()
            heads = num_heads or max(1, dim // 32)
            self.mixer = create_mixer(name, dim, heads, proj_drop=proj_drop, **options, **dd)

        def forward(self, x: Tensor) -> Tensor:
            """Map `[B, dim, H, W]` to the same."""
            return self.mixer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    return TokenMixer
