"""Test-time training: each image trains small networks on its keys and values, and its queries run through them."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, trunc_normal_
from torch import Tensor, nn

from visionattn.layers.heads import check_heads
from visionattn.layers.pointwise import MapLinear
from visionattn_kernels.tracing import without_autocast

SCALE = 9**-0.5
"""Factor of both inner losses, from the nine weights of a channel of the convolution."""


@register_notrace_function
def train_and_run(qkv: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    """Train both inner models on the keys and values of each image, and run them on its queries.

    The training step keeps float32 under autocast. The function is opaque to FX, because it reads shapes.

    Args:
        qkv: Queries, keys and values of all heads, then of the extra head, `[B, H, W, 3 * dim + 3 * d]`.
        w1: Weights of the linear half of the gated unit, `[1, heads, d, d]`.
        w2: Weights of its gate, `[1, heads, d, d]`.
        w3: Weights of the convolution, `[d, 1, 3, 3]`.

    Returns:
        Outputs of all heads, then of the extra head, `[B, H, W, dim + d]`.
    """
    heads, d = w1.shape[1:3]
    wide, *narrow = qkv.split([3 * heads * d, d, d, d], -1)
    q, k, v = wide.flatten(1, 2).unflatten(-1, (3, heads, d)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
    exact = torch.promote_types(qkv.dtype, torch.float32)
    with without_autocast(qkv.device):
        unit = train_unit(k.to(exact), v.to(exact), torch.cat([w1, w2], -1).to(exact))
        taps = train_taps(*(x.to(exact) for x in narrow[1:]), w3.flatten(1).T.to(exact))
    mixed = gated_unit(q, unit.to(q.dtype)).transpose(1, 2).flatten(-2).unflatten(1, qkv.shape[1:3])
    return torch.cat([mixed, convolve(narrow[0], taps.to(q.dtype))], -1)


def gated_unit(x: Tensor, w: Tensor) -> Tensor:
    """Return x w1 ⊙ silu(x w2) of rows `[..., N, d]`, with w = [w1 w2], `[..., d, 2 * d]`."""
    linear, gate = (x @ w).chunk(2, -1)
    return linear * F.silu(gate)


def train_unit(k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Return the weights of `gated_unit` after one step on -SCALE * mean_n(gated_unit(k) · v)."""
    linear, gate = (k @ w).chunk(2, -1)
    sigmoid = gate.sigmoid()
    error = v * (-SCALE / v.shape[-2])
    errors = [error * gate * sigmoid, error * linear * sigmoid * (1 + gate * (1 - sigmoid))]
    return descend(w, k.mT @ torch.cat(errors, -1))


def shifts(x: Tensor) -> list[Tensor]:
    """Return a map `[B, H, W, d]` at its nine neighbours, row by row, with zeros outside."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    return [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]


def convolve(x: Tensor, w: Tensor) -> Tensor:
    """Return the 3x3 depthwise convolution of maps `[B, H, W, d]`, with weights of each image `[B, 9, d]`."""
    out = torch.zeros_like(x)
    for shifted, tap in zip(shifts(x), w[:, :, None, None].unbind(1), strict=True):
        out = out + shifted * tap
    return out


def train_taps(k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Return the weights of `convolve` after one step on -SCALE * mean_hw(convolve(k) * v), summed over channels."""
    error = v * (-SCALE / (v.shape[1] * v.shape[2]))
    return descend(w, torch.stack([(shifted * error).sum((1, 2)) for shifted in shifts(k)], 1))


def descend(w: Tensor, gradient: Tensor) -> Tensor:
    """Take a step of rate 1 along gradient / (1 + its norm per column)."""
    return w - gradient / (1 + torch.linalg.vector_norm(gradient, dim=-2, keepdim=True))


class TttMixer2d(nn.Module):
    """The test-time training of ViT³ (arXiv 2512.01643), `[B, H, W, dim]` to the same.

    Per image and head, one step of gradient descent on the keys and values, from learned weights w1 and w2:

        loss   = -9^-1/2 * mean_n(k_n w1 ⊙ silu(k_n w2) · v_n)
        w      = w - g / (1 + |g|)             g: the gradient of w1 or w2, with the norm of each column
        out_n  = q_n w1 ⊙ silu(q_n w2)

    One more head of d = dim / num_heads channels has a 3x3 depthwise convolution w3 as its inner model, with the
    same loss and step per channel. The projection reads all heads and this one, dim + d channels. The gradients are
    in closed form, so an outer gradient flows through the step.

    Time and memory are linear in the number of positions N: 6 N d products per channel, and no matrix of scores. There
    are 4 dim² + 4 dim d + 2 num_heads d² + 9 d weights, and the biases. All but the convolution ignores where
    positions are.

    Parameters have the names and shapes of the authors' code. Precision is our choice: the step runs in float32, or
    float64 for such inputs, and the queries run in the type of the network.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the module.

        Args:
            dim: Channels.
            num_heads: Heads with a gated unit; must divide `dim`.
            qkv_bias: Whether the projection to queries, keys and values has a bias.
            proj_drop: Dropout after the output projection.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: `num_heads` does not divide `dim`.
        """
        super().__init__()
        check_heads(dim, num_heads)
        d = dim // num_heads
        self.num_heads = num_heads
        self.qkv = MapLinear(dim, 3 * dim + 3 * d, bias=qkv_bias, device=device, dtype=dtype)
        self.w1 = nn.Parameter(torch.empty(1, num_heads, d, d, device=device, dtype=dtype))
        self.w2 = nn.Parameter(torch.empty(1, num_heads, d, d, device=device, dtype=dtype))
        self.w3 = nn.Parameter(torch.empty(d, 1, 3, 3, device=device, dtype=dtype))
        self.proj = MapLinear(dim + d, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        for weight in (self.w1, self.w2, self.w3):
            trunc_normal_(weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, H, W, dim]` to the same."""
        return self.proj_drop(self.proj(train_and_run(self.qkv(x), self.w1, self.w2, self.w3)))
