"""Changes to a model that make its training fast on a device; its parameters stay."""

import torch
from torch import nn

from visionattn.layers.full_attention import unfuse


def suit_device(
    model: nn.Module, device: torch.device, half: bool, channels_last: bool | None = None
) -> torch.memory_format:
    """Choose how attention is computed and the memory format of convolutions.

    Args:
        model: changed in place.
        device: device of the training.
        half: whether it computes in half precision; on CPUs attention is then not fused, see `unfuse`.
        channels_last: whether weights and images are kept in NHWC order; by default on CPUs only.

    Returns:
        The memory format of images.
    """
    if half:
        unfuse(model, device)
    if not (device.type == "cpu" if channels_last is None else channels_last):
        return torch.contiguous_format
    model.to(memory_format=torch.channels_last)
    return torch.channels_last
