"""Linear attention: scores that are inner products of features, so that keys and values are summed once.

`out = φ(q) (Σ φ(k)ᵀ v) / φ(q)·Σ φ(k)`. Sums are in float32, or in float64 for such inputs: thousands of terms leave the
range of float16, and bfloat16 loses the denominator.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from visionattn.layers.heads import check_heads, check_positive
from visionattn.layers.mixers.packed import PackedAttention2d
from visionattn_kernels.tracing import without_autocast

CHUNK = 64
"""Tokens whose causal scores are computed one by one; earlier tokens count by their sum."""


def taylor_features(x: Tensor) -> Tensor:
    """Map `[..., f]` to `[..., 1 + f + f(f + 1)/2]` features with `φ(q)·φ(k) = 1 + s + s²/2`, where `s = q·k / √f`.

    They are 1, every entry, and the product of every pair once, divided by the root of the factor that it has in the
    series (Based, arXiv 2402.18668).
    """
    f = x.shape[-1]
    x = x * f**-0.25
    rotated = torch.cat([x, x[..., : f // 2]], -1).unfold(-1, f, 1)  # [..., f // 2 + 1, f]: by 0, 1, ... f // 2 places
    products = (x[..., None, :] * rotated).flatten(-2)[..., : f * (f + 1) // 2]  # half a turn of an even f is double
    squares, pairs = products.tensor_split([f], -1)
    return torch.cat([torch.ones_like(x[..., :1]), x, squares * 0.5**0.5, pairs], -1)


def elu_features(x: Tensor) -> Tensor:
    """Return `elu(x) + 1`, the features of arXiv 2006.16236, without cancellation where they are small."""
    return F.relu(x) + x.clamp(max=0).exp()


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {"taylor": taylor_features, "elu": elu_features}
"""Feature maps by name."""


@register_notrace_function
def attend_linear(qkv: Tensor, num_heads: int, feature_dim: int, feature_map: str, is_causal: bool) -> Tensor:
    """Compute linear attention over a map; opaque to FX, because it reads shapes.

    Args:
        qkv: Queries, keys `[B, H, W, num_heads * feature_dim]` and values `[B, H, W, dim]` in a row, by head.
        num_heads: Attention heads.
        feature_dim: Channels of a head's queries and keys.
        feature_map: One of `FEATURES`.
        is_causal: Whether a query sees no later key, row by row.

    Returns:
        `[B, H, W, dim]`.
    """
    with without_autocast(qkv.device):
        wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).flatten(1, 2)
        parts = wide.tensor_split([num_heads * feature_dim, 2 * num_heads * feature_dim], -1)
        q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in parts)  # [B, heads, N, .]
        q, k = FEATURES[feature_map](q), FEATURES[feature_map](k)
        v = F.pad(v, (0, 1), value=1.0)  # the sum of ones is the denominator
        sums = _sum_causally(q, k, v) if is_causal else q @ (k.mT @ v)
        out = sums[..., :-1] / sums[..., -1:].clamp(min=torch.finfo(sums.dtype).tiny)
    return out.transpose(1, 2).flatten(-2).unflatten(1, qkv.shape[1:3]).to(qkv.dtype)


def _sum_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return `Σ_j (q_i·k_j) v_j` over `j <= i`, `[..., N, e]`, of features `[..., N, D]` and values `[..., N, e]`."""
    length = q.shape[-2]
    chunk = min(length, CHUNK)
    q, k, v = (F.pad(x, (0, 0, 0, -length % chunk)).unflatten(-2, (-1, chunk)) for x in (q, k, v))
    totals = (k.mT @ v).cumsum(-3)  # [..., chunks, D, e]
    earlier = F.pad(totals[..., :-1, :, :], (0, 0, 0, 0, 1, 0))
    return (q @ earlier + (q @ k.mT).tril() @ v).flatten(-3, -2)[..., :length, :]


class LinearAttention2d(PackedAttention2d):
    """Multi-head linear attention over the whole map, `[B, H, W, dim]` to the same; subclasses name the features.

    It has no position: a permutation of tokens permutes the output. Queries and keys have `feature_dim` channels f per
    head, hence `2 dim heads f + 2 dim²` weights.
    """

    feature_map: ClassVar[str]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feature_dim: int | None = None,
        qkv_bias: bool = True,
        is_causal: bool = False,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the module.

        Args:
            dim: Channels.
            num_heads: Attention heads; must divide `dim`.
            feature_dim: Channels of a head's queries and keys; half of its values' by default.
            qkv_bias: Whether the projection to queries, keys and values has a bias.
            is_causal: Whether a query sees no later key, row by row: a sequence is a map of one row.
            proj_drop: Dropout after the output projection.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: `num_heads` does not divide `dim`, or `feature_dim` is not positive.
        """
        check_heads(dim, num_heads)
        if feature_dim is None:
            feature_dim = max(1, dim // num_heads // 2)
        check_positive(feature_dim=feature_dim)
        qkv_dim = 2 * num_heads * feature_dim + dim
        super().__init__(dim, num_heads, qkv_bias, proj_drop, device, dtype, qkv_dim=qkv_dim)
        self.feature_dim = feature_dim
        self.is_causal = is_causal

    def attend(self, qkv: Tensor) -> Tensor:
        """Compute attention `[B, H, W, dim]` of packed queries, keys and values."""
        return attend_linear(qkv, self.num_heads, self.feature_dim, self.feature_map, self.is_causal)


class TaylorAttention2d(LinearAttention2d):
    """Linear attention whose scores are `1 + s + s²/2`, the series of `exp(s)` with `s = q·k / √f` (arXiv 2402.18668).

    Scores are at least ½ before they are normalised, so it cannot be sharp: the paper puts sliding windows beside it.
    A query costs about `2 D dim` products, with `D = 1 + f + f(f + 1)/2` features (153 at f 16), on a map of any size;
    full attention costs `2 N dim`. Training keeps D numbers in float32 per query, key and head.
    """

    feature_map = "taylor"


class EluAttention2d(LinearAttention2d):
    """Linear attention with the features `elu(x) + 1` (arXiv 2006.16236). A query costs about `2 f dim` products.

    The paper's `feature_dim` is that of the values; half of it, the default, is our choice, to compare with Taylor.
    """

    feature_map = "elu"
