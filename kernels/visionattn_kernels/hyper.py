"""HyperZ·Z·W: products of activations with kernels that a slow network generated (Terminator, arXiv 2401.17948).

Maps are `[B, C, H, W]`; a sequence is a map of one row. The global operator takes `w_hat`, the context-dependent kernel
`Ŵ = Z ⊙ W` of activations and a generated kernel, as large as the map. The local one takes small kernels, which may
differ from picture to picture and from position to position. Both are plain torch and differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from visionattn_kernels.attention import autocast_inputs
from visionattn_kernels.unfused import windowed_av
from visionattn_kernels.window import Window

GlobalMode = Literal["matmul", "elementwise", "fftconv"]

DIRECT_TAPS = 9
"""Gradients of kernels of more taps are computed as convolutions on CPUs, several times faster than torch's own."""


@overload
def hyper_zzw_global(w_hat: Tensor, z: Tensor, mode: GlobalMode = "matmul") -> Tensor: ...
@overload
def hyper_zzw_global(w_hat: Tensor, z: Sequence[Tensor], mode: GlobalMode = "matmul") -> list[Tensor]: ...
def hyper_zzw_global(w_hat: Tensor, z: Tensor | Sequence[Tensor], mode: GlobalMode = "matmul") -> Tensor | list[Tensor]:
    """Mixes activations with a context-dependent kernel as large as the map.

    - "matmul": per channel the product of two matrices, `out[h, w] = sum over m of w_hat[h, m] * z[m, w]`; square maps.
    - "elementwise": `w_hat * z`; maps of any size, positions do not mix.
    - "fftconv": convolution with zeros beyond the border, kernel position `(H // 2, W // 2)` being its centre,
      `out[p] = sum over q of w_hat[q] * z[p - q + centre]`; maps of any size.

    Args:
        w_hat: Context-dependent kernels `[B, C, H, W]`.
        z: Activations of the same shape; several are mixed in one batched product.
        mode: How.

    Returns:
        What `z` is: a tensor, or a list of tensors, `[B, C, H, W]` each.

    Raises:
        ValueError: The shapes do not fit each other or the mode.
    """
    several = [z] if isinstance(z, Tensor) else list(z)
    for x in (w_hat, *several):
        if x.dim() != 4 or x.shape != w_hat.shape:
            raise ValueError(
                f"w_hat and z must have one shape [B, C, H, W]; got {list(w_hat.shape)} and {list(x.shape)}"
            )
    height, width = w_hat.shape[2:]
    if mode == "matmul":
        if height != width:
            raise ValueError(
                f'mode "matmul" multiplies square matrices; got maps of {height}x{width}: pad or resize them to a '
                'square, or choose mode "elementwise" or "fftconv"'
            )
        mixed = _multiply(w_hat, several)
    elif mode == "elementwise":
        mixed = [w_hat * x for x in several]
    elif mode == "fftconv":
        mixed = _convolve(w_hat, several)
    else:
        raise ValueError(f"mode must be one of {', '.join(get_args(GlobalMode))}; got {mode!r}")
    return mixed[0] if isinstance(z, Tensor) else mixed


def hyper_zzw_local(z: Tensor, kernel: Tensor) -> Tensor:
    """Depthwise correlation with generated kernels, zeros beyond the border.

    Tap `(i, j)` of a kernel meets the activation at `(h + i - kH // 2, w + j - kW // 2)`.

    Args:
        z: Activations `[B, C, H, W]`.
        kernel: `[C, kH, kW]` for all pictures, `[B, C, kH, kW]` for each its own, or `[B, C, kH, kW, H, W]` for each
            position its own, which goes through the window operators.

    Returns:
        `[B, C, H, W]`.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    z, kernel = autocast_inputs(z, kernel)
    expected = {3: ["C"], 4: ["B", "C"], 6: ["B", "C"]}.get(kernel.dim())
    if z.dim() != 4 or expected is None:
        raise ValueError(
            "z must be [B, C, H, W] and kernel [C, kH, kW], [B, C, kH, kW] or [B, C, kH, kW, H, W]; got "
            f"{list(z.shape)} and {list(kernel.shape)}"
        )
    batch, channels, height, width = z.shape
    lead = {"B": batch, "C": channels}
    if list(kernel.shape[: len(expected)]) != [lead[x] for x in expected] or (
        kernel.dim() == 6 and kernel.shape[4:] != z.shape[2:]
    ):
        raise ValueError(f"kernel {list(kernel.shape)} does not fit z {list(z.shape)} in {', '.join(expected)} or map")
    if kernel.dim() == 6:
        window = Window.create((kernel.shape[2], kernel.shape[3]), boundary="zero")
        weights = kernel.permute(0, 4, 5, 1, 2, 3).flatten(4)
        return windowed_av(weights, z.permute(0, 2, 3, 1).unsqueeze(-1), window).squeeze(-1).permute(0, 3, 1, 2)
    if kernel.dim() == 3 and z.device.type != "cpu":
        return _depthwise(z, kernel.unsqueeze(1))
    # The pictures' channels side by side are the channels of one picture; in this order rows stay together in memory.
    maps = z.permute(2, 3, 0, 1).reshape(1, height, width, batch * channels).permute(0, 3, 1, 2)
    out = _depthwise(maps, kernel.expand(batch, *kernel.shape[-3:]).reshape(batch * channels, 1, *kernel.shape[-2:]))
    return out.permute(0, 2, 3, 1).reshape(height, width, batch, channels).permute(2, 3, 0, 1)


def _multiply(w_hat: Tensor, several: list[Tensor]) -> list[Tensor]:
    batch, channels, height, width = w_hat.shape
    products = torch.bmm(_as_matrices(w_hat), torch.cat([_as_matrices(x) for x in several], 2))
    return [
        _transpose(x.reshape(batch * channels, -1)).view(height, width, batch, channels).permute(2, 3, 0, 1)
        for x in products.split(width, 2)
    ]


def _as_matrices(x: Tensor) -> Tensor:
    """A map `[B, C, H, W]` as matrices `[B * C, H, W]`."""
    batch, channels, height, width = x.shape
    columns = x.permute(2, 3, 0, 1).reshape(height * width, batch * channels)
    return _transpose(columns).view(batch * channels, height, width)


def _transpose(x: Tensor) -> Tensor:
    """The transpose of a matrix in memory: much faster than that of more axes at once."""
    return x.t().contiguous()


def _convolve(w_hat: Tensor, several: list[Tensor]) -> list[Tensor]:
    size = (w_hat.shape[2], w_hat.shape[3])
    padded = [2 * n - 1 for n in size]
    spectrum = torch.fft.rfft2(_single(w_hat), s=padded)
    mixed = []
    for z in several:
        full = torch.fft.irfft2(spectrum * torch.fft.rfft2(_single(z), s=padded), s=padded)
        for axis, n in zip((2, 3), size, strict=True):
            full = full.narrow(axis, n // 2, n)
        mixed.append(full.to(z.dtype))
    return mixed


def _single(x: Tensor) -> Tensor:
    """Fourier transforms know no half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _depthwise(z: Tensor, kernel: Tensor) -> Tensor:
    height, width = kernel.shape[2:]
    if height % 2 == 0 or width % 2 == 0:
        z = F.pad(z, (width // 2, (width - 1) // 2, height // 2, (height - 1) // 2))
        return F.conv2d(z, kernel, groups=kernel.shape[0])
    if z.device.type == "cpu" and len(z) == 1:
        return _Depthwise.apply(z, kernel)
    return F.conv2d(z, kernel, padding=(height // 2, width // 2), groups=kernel.shape[0])


class _Depthwise(torch.autograd.Function):
    """The depthwise correlation of `[1, C, H, W]` with `[C, 1, kH, kW]`, both odd, with faster gradients on CPUs."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(z, kernel)
        return F.conv2d(z, kernel, padding=_half(kernel), groups=kernel.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        z, kernel = ctx.saved_tensors
        half, groups = _half(kernel), kernel.shape[0]
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_z = grad_kernel = None
        if ctx.needs_input_grad[0]:
            grad_z = F.conv2d(grad, kernel.flip(2, 3), padding=half, groups=groups)
        if ctx.needs_input_grad[1] and kernel.shape[2:].numel() > DIRECT_TAPS:
            # Tap o of the gradient is the sum over p of z[p + o] grad[p]: z correlated with grad as a kernel.
            grad_kernel = F.conv2d(z, grad.transpose(0, 1), padding=half, groups=groups).transpose(0, 1)
        elif ctx.needs_input_grad[1]:
            grad_kernel = conv2d_weight(z, kernel.shape, grad, padding=half, groups=groups)
        return grad_z, grad_kernel


def _half(kernel: Tensor) -> tuple[int, int]:
    return kernel.shape[2] // 2, kernel.shape[3] // 2
