"""The encoder of Slot Attention: four convolutions with ReLU, and no norm.

Source: Locatello et al., "Object-Centric Learning with Slot Attention", NeurIPS 2020, https://arxiv.org/abs/2006.15055,
appendix E.2. What follows the convolutions there, positions and an MLP, is part of `visionattn.models.slots`, so that
any model can stand in this one's place.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models import checkpoint, generate_default_cfgs
from torch import Tensor, nn

from visionattn.models._configs import image_config, register_variants
from visionattn.models._weights import build_model
from visionattn.models.backbone import Backbone

__all__ = ["SlotCnn"]


class Layer(nn.Module):
    """A convolution and a ReLU."""

    def __init__(self, dim: int, dim_out: int, kernel_size: int, stride: int, **dd: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, kernel_size, stride, kernel_size // 2, **dd)
        self.act = nn.ReLU(inplace=True)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, dim, H, W]` to `[B, dim_out, ceil(H / stride), ceil(W / stride)]`."""
        if self.grad_checkpointing:
            return self.act(checkpoint(self.conv, x))
        return self.act(self.conv(x))


class SlotCnn(Backbone):
    """A stack of convolutions."""

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 64, 64, 64),
        kernel_sizes: Sequence[int] = (5, 5, 5, 5),
        strides: Sequence[int] = (1, 1, 1, 1),
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the network.

        Args:
            embed_dims: Channels of each layer.
            kernel_sizes: Edge of their kernels, odd.
            strides: Their strides.
            in_chans: Channels of an image.
            num_classes: Classes; 0 for no classifier.
            global_pool: Pooling before the classifier, as in timm ("avg", "max", ...); "" for none.
            drop_rate: Dropout before the classifier.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: Not as many kernels and strides as layers.
        """
        super().__init__()
        if not len(embed_dims) == len(kernel_sizes) == len(strides) >= 2:
            raise ValueError(
                "embed_dims, kernel_sizes and strides must have one entry per layer, of two or more; got "
                f"{list(embed_dims)}, {list(kernel_sizes)} and {list(strides)}"
            )
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        layers: list[Layer] = []
        feature_info: list[dict[str, Any]] = []
        dim, reduction = in_chans, 1
        for index, (dim_out, kernel_size, stride) in enumerate(zip(embed_dims, kernel_sizes, strides, strict=True)):
            layers.append(Layer(dim, dim_out, kernel_size, stride, **dd))
            dim, reduction = dim_out, reduction * stride
            if index:
                feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"levels.{index - 1}"})
        self.patch_embed = layers[0]
        self.levels = nn.Sequential(*layers[1:])
        self.norm = nn.Identity()
        self.finish(feature_info, dim, in_chans, num_classes, global_pool, drop_rate, **dd)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images `[B, in_chans, H, W]` to features `[B, num_features, H', W']`."""
        return self.norm(self.levels(self.patch_embed(x)))


def _cfg(size: int, reduction: int) -> dict[str, Any]:
    return image_config(
        num_classes=10,
        input_size=(3, size, size),
        pool_size=(size // reduction, size // reduction),
        crop_pct=1.0,
        first_conv="patch_embed.conv",
        paper_ids="arXiv:2006.15055",
        paper_name="Object-Centric Learning with Slot Attention",
    )


default_cfgs = generate_default_cfgs(
    {"slot_cnn.untrained": _cfg(128, reduction=1), "slot_cnn_pico.untrained": _cfg(64, reduction=4)}
)


register_variants(
    __name__,
    partial(build_model, SlotCnn, features={"out_indices": (0, 1, 2), "feature_cls": "getter"}),
    {
        "slot_cnn": ("The paper's encoder: 5×5 kernels and 64 channels, at the resolution of the image.", {}),
        "slot_cnn_pico": (
            "A small encoder for CPUs, of our own making: maps of a quarter of the image's edge.",
            {"embed_dims": (32, 64, 64, 64), "kernel_sizes": (5, 3, 3, 3), "strides": (2, 2, 1, 1)},
        ),
    },
)
