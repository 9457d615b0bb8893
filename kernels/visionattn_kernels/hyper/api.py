"""HyperZ·Z·W: products of activations with kernels that a slow network generated (Terminator, arXiv 2401.17948).

Maps are `[B, C, H, W]`; a sequence is a map of one row. The global operator takes `w_hat`, the context-dependent kernel
`Ŵ = Z ⊙ W` of activations and a generated kernel, as large as the map. The local one takes small kernels, which may
differ from image to image and from position to position. Both are plain torch and differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels.attention.problem import autocast_inputs
from visionattn_kernels.hyper.stacked import can_run, correlate_stacked, multiply_stacked
from visionattn_kernels.tracing import is_exporting
from visionattn_kernels.unfused.api import windowed_av
from visionattn_kernels.window import Window

GlobalMode = Literal["matmul", "elementwise", "fftconv"]


@overload
def hyper_zzw_global(w_hat: Tensor, z: Tensor, mode: GlobalMode = "matmul") -> Tensor: ...
@overload
def hyper_zzw_global(w_hat: Tensor, z: Sequence[Tensor], mode: GlobalMode = "matmul") -> list[Tensor]: ...
def hyper_zzw_global(w_hat: Tensor, z: Tensor | Sequence[Tensor], mode: GlobalMode = "matmul") -> Tensor | list[Tensor]:
    """Mix activations with a context-dependent kernel as large as the map.

    - "matmul": per channel the product of two matrices, `out[h, w] = sum over m of w_hat[h, m] * z[m, w]`; square maps.
    - "elementwise": `w_hat * z`; maps of any size, positions do not mix.
    - "fftconv": convolution with zeros beyond the border, kernel position `(H // 2, W // 2)` being its centre,
      `out[p] = sum over q of w_hat[q] * z[p - q + centre]`; maps of any size. It is computed by Fourier transforms of
      whole maps, so NaN at one position reaches every position of its map.

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
        w_hat, *several = autocast_inputs(w_hat, *several)
        mixed = _multiply(w_hat, several)
    elif mode == "elementwise":
        mixed = [w_hat * x for x in several]
    elif mode == "fftconv":
        mixed = _convolve(w_hat, several)
    else:
        raise ValueError(f"mode must be one of {', '.join(get_args(GlobalMode))}; got {mode!r}")
    return mixed[0] if isinstance(z, Tensor) else mixed


def hyper_zzw_local(z: Tensor, kernel: Tensor) -> Tensor:
    """Correlate each channel with a generated kernel, zeros beyond the border.

    Tap `(i, j)` of a kernel meets the activation at `(h + i - kH // 2, w + j - kW // 2)`.

    Args:
        z: Activations `[B, C, H, W]`.
        kernel: `[C, kH, kW]` for all images, `[B, C, kH, kW]` for each its own, or `[B, C, kH, kW, H, W]` for each
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
        window = Window.neighborhood((kernel.shape[2], kernel.shape[3]), boundary="zero")
        weights = kernel.permute(0, 4, 5, 1, 2, 3).flatten(4)
        return windowed_av(weights, z.permute(0, 2, 3, 1).unsqueeze(-1), window).squeeze(-1).permute(0, 3, 1, 2)
    top, left = kernel.shape[-2] // 2, kernel.shape[-1] // 2
    if can_run(z, kernel):
        taps = kernel.expand(batch, *kernel.shape[-3:])
        return _from_stack(correlate_stacked(_as_stack(z), _as_stack(taps), top, left), z)
    z = F.pad(z, (left, kernel.shape[-1] - 1 - left, top, kernel.shape[-2] - 1 - top))
    if is_exporting():
        # A convolution has a fixed number of groups, hence of images.
        patches = F.unfold(z, kernel.shape[-2:]).unflatten(1, (channels, -1))
        return (kernel.flatten(-2).unsqueeze(-2) @ patches).reshape(batch, channels, height, width)
    # The images' channels side by side are the channels of one image.
    if kernel.dim() == 4:
        z = z.flatten(0, 1)[None]
    taps = kernel.reshape(-1, 1, *kernel.shape[-2:])
    return F.conv2d(z, taps, groups=len(taps)).reshape(batch, channels, height, width)


def _multiply(w_hat: Tensor, several: list[Tensor]) -> list[Tensor]:
    if can_run(w_hat, *several):
        factor = _as_stack(w_hat)
        return [_from_stack(multiply_stacked(factor, _as_stack(z)), z) for z in several]
    out = torch.bmm(w_hat.flatten(0, 1), torch.cat([z.flatten(0, 1) for z in several], 2))
    return [x.view_as(z) for x, z in zip(out.split(w_hat.shape[3], 2), several, strict=True)]


def _as_stack(x: Tensor) -> Tensor:
    """View a map `[B, C, H, W]` as matrices `[H, W, B * C]`; copied if memory has another order."""
    return x.permute(2, 3, 0, 1).flatten(2)


def _from_stack(x: Tensor, like: Tensor) -> Tensor:
    return x.unflatten(2, like.shape[:2]).permute(2, 3, 0, 1)


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
    """Cast half precision, which Fourier transforms do not take."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
