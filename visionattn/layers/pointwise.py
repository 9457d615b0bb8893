"""Linear layers on maps."""

import torch
import torch.nn.functional as F
from timm.layers import Mlp, register_notrace_function
from torch import Tensor, nn


@register_notrace_function
def linear_on_map(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply `F.linear` to a heads-last map `[B, H, W, C]`; on CPUs in float32 by a 1x1 convolution.

    torch multiplies float32 matrices by MKL, which on some processors of AMD reaches half of what the convolution does.
    On others they are equal (`kernels/bench/pointwise.py`).
    """
    if is_wrapped(weight) or x.device.type != "cpu" or x.dtype != torch.float32 or x.dim() != 4:
        return F.linear(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def is_wrapped(weight: Tensor) -> bool:
    """Return whether a weight wraps other tensors, as a quantized one does: `F.linear` takes it, and views need not."""
    return hasattr(type(weight), "__tensor_flatten__")


def apply_rows(layer: nn.Linear, x: Tensor, rows: slice) -> Tensor:
    """Return the outputs `rows` of a linear layer; a quantized layer, or one with an adapter, runs as a whole."""
    if type(layer) is not nn.Linear or is_wrapped(layer.weight):
        return layer(x)[..., rows]
    return F.linear(x, layer.weight[rows], None if layer.bias is None else layer.bias[rows])


class MapLinear(nn.Linear):
    """A linear layer for heads-last maps, with the parameters of any other."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, H, W, in_features]` to `[B, H, W, out_features]`."""
        return linear_on_map(x, self.weight, self.bias)


class MapMlp(Mlp):
    """timm's MLP for heads-last maps."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build an MLP of `hidden_dim` between `dim` channels, with dropout after both layers."""
        super().__init__(dim, hidden_dim, drop=drop, device=device, dtype=dtype)
        self.fc1 = MapLinear(dim, hidden_dim, device=device, dtype=dtype)
        self.fc2 = MapLinear(hidden_dim, dim, device=device, dtype=dtype)
