"""Local linear attention: a linear regression of values on keys around each query."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from visionattn.layers.heads import check_positive
from visionattn.layers.neighborhood_attention import KernelSize, NeighborhoodAttention2d
from visionattn_kernels import Window, windowed_av, windowed_qk
from visionattn_kernels.operators import accumulation_dtype
from visionattn_kernels.tracing import without_autocast

INITIAL_RIDGE = 0.1

STEPS = 8
"""Default of the steps of conjugate gradients if a head has more channels."""

ROUNDING_STEPS = 2
"""Steps beyond the channels of a head, which are exact but for rounding: they correct what float32 loses."""


def regress(weights: Tensor, q: Tensor, k: Tensor, v: Tensor, window: Window, ridge: Tensor, steps: int) -> Tensor:
    """Predict the value at each query by a linear regression of values on keys over its window.

    The prediction is the b that, with an A, minimises `Σ p ‖v - b - A (k - q)‖² + ridge ‖A‖²`. It equals
    `v̄ - Cov_p(v, k) x` with `(Cov_p(k, k) + ridge) x = k̄ - q`.

    Args:
        weights: `[B, H, W, heads, slots]` the weights p of the keys of each window, laid out as by `windowed_qk`. They
            sum to 1, and are 0 at slots that do not exist.
        q: `[B, H, W, heads, d]` where to predict.
        k: `[B, H, W, heads, d]` keys.
        v: `[B, H, W, heads, v_dim]` values.
        window: Which keys a query sees.
        ridge: `[heads]` at least 0.
        steps: Steps of conjugate gradients for x; d are exact but for rounding.

    Returns:
        `[B, H, W, heads, v_dim]`.
    """
    unused = weights == 0

    def centred(x: Tensor) -> Tensor:
        """Return `x·(k - k̄)` at each slot."""
        products = windowed_qk(x, k, window).masked_fill(unused, 0)
        return products - (weights * products).sum(-1, keepdim=True)

    def times(x: Tensor) -> Tensor:
        return windowed_av(weights * centred(x), k, window) + ridge[:, None] * x

    x = solve(times, windowed_av(weights, k, window) - q, steps)
    return windowed_av(weights * (1 - centred(x)), v, window)


def solve(times: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """Solve `times(x) = b` for vectors `[..., d]` by conjugate gradients; `times` is symmetric and positive.

    A vector whose residual has reached rounding stays as it is.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    square = b.square().sum(-1, keepdim=True)
    smallest = square.detach() * torch.finfo(b.dtype).eps ** 2
    for _ in range(steps):
        unsolved = square > smallest
        image = times(direction)
        step = _divide(square, (direction * image).sum(-1, keepdim=True), unsolved)
        x, residual = x + step * direction, residual - step * image
        before, square = square, residual.square().sum(-1, keepdim=True)
        direction = residual + _divide(square, before, unsolved) * direction
    return x


def _divide(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, a / torch.where(where, b, 1), 0)


@register_notrace_module  # attention reads shapes
class LocalLinearAttention2d(NeighborhoodAttention2d):
    """Multi-head local linear attention over neighborhoods, `[B, H, W, dim]` to the same.

    Local linear attention (arXiv 2510.01450): a query predicts its value by a linear regression of values on keys,
    weighted by softmax attention p, where softmax attention predicts by a weighted mean. Per head:

        out = v̄ - Cov_p(v, k) (Cov_p(k, k) + λ)⁻¹ (k̄ - q),   v̄ = Σ p v,  k̄ = Σ p k

    Values that are an affine function of the keys are recovered, and λ → ∞ gives softmax attention. λ is learned per
    head. The system is solved by conjugate gradients, one pair of windowed products per step, hence 2 T + 4 products
    per query and key for T steps, in place of two; and backward keeps the weights of every step. The module is meant
    for maps up to 16 x 16 and as the reference of `ParallaxAttention2d`, which learns the solution.

    The paper is about sequences. Our choices are windows of a map, the relative bias in p, keys of root mean square 1
    per head, λ with weights that sum to 1, and the steps. float32 is the least precision, under autocast too.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: KernelSize = 7,
        dilation: int | None = 1,
        steps: int | None = None,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        legacy_pad: bool = False,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the module; the arguments are those of `NeighborhoodAttention2d`, and one more.

        Args:
            dim: Channels.
            num_heads: Attention heads.
            kernel_size: Keys per query and axis.
            dilation: Distance of neighbouring keys.
            steps: Steps of conjugate gradients. By default 8, and up to 8 channels per head two more than channels,
                with which the solution is exact in float32.
            qkv_bias: Whether the projection to queries, keys and values has a bias.
            rel_pos_bias: Whether to learn a relative positional bias per head.
            legacy_pad: What happens on a map that is smaller than a window.
            proj_drop: Dropout after the output projection.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: `num_heads` does not divide `dim`, or `steps` is below 1.
        """
        super().__init__(
            dim, num_heads, kernel_size, dilation, qkv_bias, rel_pos_bias, legacy_pad, proj_drop, device, dtype
        )
        channels = dim // num_heads
        if steps is None:
            steps = channels + ROUNDING_STEPS if channels <= STEPS else STEPS
        check_positive(steps=steps)
        self.steps = steps
        self.ridge = nn.Parameter(
            torch.full((num_heads,), math.log(math.expm1(INITIAL_RIDGE)), device=device, dtype=dtype)
        )

    def attend(self, qkv: Tensor) -> Tensor:
        """Compute attention `[B, H, W, dim]` of packed queries, keys and values, before the output projection."""
        with without_autocast(qkv.device):
            exact = qkv.to(accumulation_dtype(qkv.dtype))
            q, k, v = exact.unflatten(-1, (3, self.num_heads, -1)).unbind(3)
            k = F.rms_norm(k, k.shape[-1:])
            window = self.window((k.shape[1], k.shape[2]))
            weights = windowed_qk(q, k, window, self.rpb, k.shape[-1] ** -0.5).softmax(-1)
            out = regress(weights, q, k, v, window, F.softplus(self.ridge.to(exact.dtype)), self.steps)
            return out.flatten(-2).to(qkv.dtype)
