"""Slot autoencoders: a feature map becomes a few slots, each of which draws a part of the image.

Slot attention and a decoder of single slots are added to any timm model. The target is the image, and the encoder is
trained as well (`slot_attention`: Locatello et al., "Object-Centric Learning with Slot
Attention", NeurIPS 2020, https://arxiv.org/abs/2006.15055), or the features of a frozen encoder (`dinosaur`: Seitzer
et al., "Bridging the Gap to Real-World Object-Centric Learning", ICLR 2023, https://arxiv.org/abs/2209.14860). A step
of training is

    features = encode(encoder, image)
    found = autoencoder(features)
    loss = F.mse_loss(found.reconstruction, autoencoder.target(image, features))

Shapes: B images of 3 channels, whose map of features is [B, C, h, w]; K slots of width D; a reconstruction is
[B, C', H', W'].
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionattn.layers.slot_attention import SlotAttention, SlotInit

Method = Literal["slot_attention", "dinosaur"]

PAPER: dict[Method, dict[str, int]] = {
    "slot_attention": {"slot_dim": 64, "slot_hidden_dim": 128, "decoder_dim": 64},
    "dinosaur": {"slot_dim": 256, "slot_hidden_dim": 1024, "decoder_dim": 2048},
}
"""Widths in the publications."""

MLP_DEPTH = 3
"""Hidden layers of DINOSAUR's decoder."""


class Decomposition(NamedTuple):
    """Images as a few parts each.

    Attributes:
        slots: [B, K, D].
        attention: share of each feature position per slot [B, K, h, w]; sums to 1 over slots.
        masks: share of each reconstructed position per slot [B, K, H', W']; sums to 1 over slots.
        parts: part that each slot draws [B, K, C', H', W'].
    """

    slots: Tensor
    attention: Tensor
    masks: Tensor
    parts: Tensor

    @property
    def reconstruction(self) -> Tensor:
        """Sum of the parts, each weighted by its mask: [B, C', H', W']."""
        return (self.masks[:, :, None] * self.parts).sum(1)

    def segments(self, size: Sequence[int]) -> Tensor:
        """Return the slot with the largest mask at each position, at a height and width: [B, H, W], int64."""
        return _resize(self.masks, size).argmax(1)


def encode(encoder: nn.Module, image: Tensor) -> Tensor:
    """Return the last feature map of a timm model, after its final norm: [B, C, h, w].

    Args:
        encoder: any model that has `forward_intermediates`.
        image: images [B, 3, H, W].
    """
    model: Any = encoder
    (features,) = model.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)
    return features


class SoftPosition(nn.Module):
    """Positions for maps: how far a place is from the four edges, projected linearly."""

    distances: Tensor

    def __init__(self, dim: int, size: Sequence[int]) -> None:
        """Build positions for maps of `dim` channels, of a height and width."""
        super().__init__()
        self.size = (size[0], size[1])
        y, x = (torch.linspace(0, 1, length) for length in self.size)
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
        self.register_buffer("distances", torch.cat([grid, 1 - grid], dim=-1), persistent=False)
        self.project = nn.Linear(4, dim)

    def forward(self) -> Tensor:
        """Return the positions to add to a map [h, w, D]."""
        return self.project(self.distances)


class LearnedPosition(nn.Module):
    """Positions for maps: a learned vector for each place."""

    def __init__(self, dim: int, size: Sequence[int]) -> None:
        """Build positions for maps of `dim` channels, of a height and width."""
        super().__init__()
        self.size = (size[0], size[1])
        self.table = nn.Parameter(torch.empty(*self.size, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self) -> Tensor:
        """Return the positions to add to a map [h, w, D]."""
        return self.table


class BroadcastDecoder(nn.Module):
    """Decoder of single slots: each is copied to all positions of a grid, gets their codes, and is convolved.

    With kernels of 1×1 this is an MLP for each place.

    Attributes:
        size: height and width of the parts.
    """

    def __init__(
        self,
        dim: int,
        out_chans: int,
        position: SoftPosition | LearnedPosition,
        hidden_dim: int,
        strides: Sequence[int],
        kernel_size: int,
        patch_size: int,
    ) -> None:
        """Build the layers, see `SlotAutoencoder`; `dim` is the width of a slot."""
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"decoder_kernel must be an odd number, got {kernel_size}")
        if not all(1 <= stride <= kernel_size for stride in strides):
            raise ValueError(
                f"decoder_strides must be at least 1 and at most decoder_kernel {kernel_size}, got {list(strides)}"
            )
        self.position = position
        layers: list[nn.Module] = []
        scale = patch_size
        for stride in strides:
            layers += [_convolution(dim, hidden_dim, kernel_size, stride), nn.ReLU(inplace=True)]
            dim, scale = hidden_dim, scale * stride
        layers += [_convolution(dim, (out_chans + 1) * patch_size**2, min(kernel_size, 3), 1)]
        self.layers = nn.Sequential(*layers, nn.PixelShuffle(patch_size))
        self.size = (scale * position.size[0], scale * position.size[1])

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Map slots [B, K, D] to parts [B, K, C', H', W'] and logits of their masks [B, K, H', W']."""
        placed = slots[:, :, None, None] + self.position()  # [B, K, h, w, D]
        drawn = self.layers(placed.flatten(0, 1).permute(0, 3, 1, 2)).float()
        drawn = drawn.unflatten(0, slots.shape[:2])
        return drawn[:, :, :-1], drawn[:, :, -1]


class SlotAutoencoder(nn.Module):
    """From a map of features to slots, and to what the slots draw."""

    def __init__(
        self,
        features: Sequence[int],
        method: Method = "slot_attention",
        num_slots: int = 7,
        slot_dim: int | None = None,
        slot_hidden_dim: int | None = None,
        iterations: int = 3,
        slot_init: SlotInit = "gaussian",
        implicit: bool = False,
        guided: bool = False,
        decoder_dim: int | None = None,
        decoder_grid: int = 8,
        decoder_strides: Sequence[int] = (2, 2, 2, 1),
        decoder_kernel: int = 5,
        decoder_patch: int = 1,
    ) -> None:
        """Build the layers; sizes that are not given are the published ones.

        Args:
            features: C, h and w of the map.
            method: Target of the reconstruction: the image ("slot_attention") or the features ("dinosaur").
            num_slots: Number of slots.
            slot_dim: Width of a slot.
            slot_hidden_dim: Hidden width of the MLP that updates slots.
            iterations: Iterations of slot attention.
            slot_init: Initial slots, see `SlotInit`.
            implicit: Whether gradients are those of the last iteration alone, see `SlotAttention`.
            guided: Whether a mask is the slot's attention times the decoder's mask, so that a slot draws where it
                looked. An extension: slots separate within hundreds of steps, and without it stayed the same for
                thousands.
            decoder_dim: Channels of the decoder's layers.
            decoder_grid: Edge of the grid on which a slot is put before it is drawn, for "slot_attention"; that of
                "dinosaur" is that of the features, and its layers are an MLP.
            decoder_strides: Enlargement by each layer of the decoder.
            decoder_kernel: Edge of their kernels, odd.
            decoder_patch: Edge of the patches of pixels that the last layer draws at each place.

        Raises:
            ValueError: The method is unknown, or a number is out of its bounds.
        """
        super().__init__()
        if method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
        given = {"slot_dim": slot_dim, "slot_hidden_dim": slot_hidden_dim, "decoder_dim": decoder_dim}
        sizes = PAPER[method] | {key: value for key, value in given.items() if value is not None}
        numbers = {**sizes, "decoder_grid": decoder_grid, "decoder_patch": decoder_patch}
        for what, number in numbers.items():
            if number < 1:
                raise ValueError(f"{what} must be at least 1, got {number}")
        in_chans, *in_size = features
        dim = sizes["slot_dim"]
        self.method, self.guided = method, guided
        pixels = method == "slot_attention"
        self.position = SoftPosition(in_chans, in_size) if pixels else None  # a ViT's features know their places
        self.tokens = nn.Sequential(
            nn.LayerNorm(in_chans), nn.Linear(in_chans, in_chans), nn.ReLU(inplace=True), nn.Linear(in_chans, dim)
        )
        self.slot_attention = SlotAttention(
            dim, None, num_slots, iterations, sizes["slot_hidden_dim"], init=slot_init, implicit=implicit
        )
        if pixels:
            position: SoftPosition | LearnedPosition = SoftPosition(dim, (decoder_grid, decoder_grid))
            layers = decoder_strides, decoder_kernel, decoder_patch
        else:
            position, layers = LearnedPosition(dim, in_size), ((1,) * MLP_DEPTH, 1, 1)
        self.decoder = BroadcastDecoder(dim, 3 if pixels else in_chans, position, sizes["decoder_dim"], *layers)

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Decomposition:
        """Decompose images into slots and their parts.

        Args:
            features: Output of `encode` [B, C, h, w].
            noise: Noise of drawn slots, see `SlotAttention`.
        """
        x = features.permute(0, 2, 3, 1)
        x = x if self.position is None else x + self.position()
        slots, attention = self.slot_attention(self.tokens(x.flatten(1, 2)), noise)
        attention = attention.unflatten(-1, features.shape[-2:])
        parts, logits = self.decoder(slots)
        if self.guided:
            logits = logits + _resize(attention.log(), logits.shape[-2:])
        return Decomposition(slots, attention, logits.softmax(1), parts)

    def target(self, image: Tensor, features: Tensor) -> Tensor:
        """Return the target of the reconstruction: the features, or images averaged to its size."""
        if self.method == "dinosaur":
            return features
        size = self.decoder.size
        return image if image.shape[-2:] == size else F.interpolate(image, size=size, mode="area")


def _convolution(dim: int, dim_out: int, kernel_size: int, stride: int) -> nn.Module:
    """Build a convolution that keeps the size of maps, or enlarges them `stride` times."""
    padding = kernel_size // 2
    if stride == 1:
        return nn.Conv2d(dim, dim_out, kernel_size, padding=padding)
    return nn.ConvTranspose2d(dim, dim_out, kernel_size, stride, padding, output_padding=stride - 1)


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps [B, K, h, w] to a height and width."""
    return F.interpolate(maps.float(), size=tuple(size), mode="bilinear", align_corners=False)
