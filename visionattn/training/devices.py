"""Changes to a model that make its training fast on a device; its parameters stay."""

from functools import partial

import torch
from torch import Tensor, nn

from visionattn.layers.full_attention import unfuse
from visionattn_kernels.tracing import without_autocast


def suit_device(
    model: nn.Module, device: torch.device, half: bool, channels_last: bool | None = None
) -> torch.memory_format:
    """Choose how attention and convolutions are computed, and their memory format.

    Args:
        model: changed in place.
        device: device of the training.
        half: whether it computes in half precision; on CPUs attention is then not fused, see `unfuse`, and convolutions
            of maps of one position are computed in float32, because torch has wrong gradients for them.
        channels_last: whether weights and images are kept in NHWC order; by default on CPUs, if most parameters belong
            to convolutions.

    Returns:
        The memory format of images.
    """
    if half:
        unfuse(model, device)
        if device.type == "cpu":
            _widen_single_positions(model)
    if not (device.type == "cpu" and _convolves(model) if channels_last is None else channels_last):
        return torch.contiguous_format
    model.to(memory_format=torch.channels_last)
    return torch.channels_last


def _convolves(model: nn.Module) -> bool:
    """Return whether most parameters belong to convolutions; others gain nothing from channels-last memory."""
    sizes = [(parameter.numel(), parameter.dim() == 4) for parameter in model.parameters()]
    return 2 * sum(size for size, of_convolution in sizes if of_convolution) > sum(size for size, _ in sizes)


def _widen_single_positions(model: nn.Module) -> None:
    """Let convolutions of maps of one position compute in float32 under autocast.

    In bfloat16 the gradient of their weights holds memory that was never written (torch 2.14).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    if x.shape[-2] > 1 or x.shape[-1] > 1:
        return type(conv).forward(conv, x)
    with without_autocast(x.device):
        return type(conv).forward(conv, x.to(conv.weight.dtype))
