"""Masked autoencoding: a ViT of timm sees some patches of an image, and a small decoder predicts the others.

The encoder is any `VisionTransformer`, unchanged. Its state dict holds all that is used later; the decoder is for
pretraining only. A training step is

    masking = mask_patches(noise, ratio)
    predicted = decoder(encode_visible(encoder, image, masking.visible), masking)
    loss = F.mse_loss(predicted, hidden_patches(image, masking, decoder.patch_size))

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, https://arxiv.org/abs/2111.06377.

Shapes: B images of P patches, of which V are visible and M hidden; E prefix tokens (class token, registers).
"""

from typing import Any, NamedTuple

import torch
from timm.layers import PatchEmbed, build_sincos2d_pos_embed
from timm.models import checkpoint_seq, named_apply
from timm.models.vision_transformer import Block, VisionTransformer, get_init_weights_vit
from torch import Tensor, nn

__all__ = ["MaskedDecoder"]

EPSILON = 1e-6
"""Added to the variance of a patch's pixels."""


class Masking(NamedTuple):
    """Visible and hidden patches of each image.

    Attributes:
        visible: positions of the visible patches [B, V].
        hidden: positions of the hidden patches [B, M], whose pixels are predicted.
    """

    visible: Tensor
    hidden: Tensor


def mask_patches(noise: Tensor, ratio: float) -> Masking:
    """Hide the patches with the most noise, so that uniform noise hides any set of them with equal probability.

    Args:
        noise: random number of each patch [B, P].
        ratio: share of the patches to hide, rounded to whole patches.

    Raises:
        ValueError: no patch would be hidden, or none visible.
    """
    total = noise.shape[1]
    hidden = round(total * ratio)
    if not 0 < hidden < total:
        raise ValueError(f"mask_ratio {ratio} hides {hidden} of {total} patches: at least 1 must be hidden, 1 visible")
    order = noise.argsort(dim=1)
    return Masking(order[:, : total - hidden], order[:, total - hidden :])


def encode_visible(encoder: VisionTransformer, image: Tensor, visible: Tensor) -> Tensor:
    """Encode the visible patches of each image, after all patches got their positions.

    Args:
        encoder: the ViT.
        image: images [B, C, H, W].
        visible: positions of the visible patches [B, V].

    Returns:
        Prefix tokens and then those of the visible patches, in the order of `visible`, after the final norm: [B, E + V,
        D].
    """
    # timm has no public method that stops after the positions; the test of `encode_visible` fails if this one moves.
    tokens: Tensor = encoder._pos_embed(encoder.patch_embed(image))
    prefix, patches = tokens.split([encoder.num_prefix_tokens, tokens.shape[1] - encoder.num_prefix_tokens], dim=1)
    tokens = encoder.norm_pre(torch.cat([prefix, _take(patches, visible)], dim=1))
    if encoder.grad_checkpointing:
        return encoder.norm(checkpoint_seq(encoder.blocks, tokens))
    return encoder.norm(encoder.blocks(tokens))


class MaskedDecoder(nn.Module):
    """Decoder that predicts the pixels of hidden patches from the encoder's tokens of visible ones.

    Tokens of the encoder and, for each hidden patch, one learned mask token go through a few blocks of their own.
    Positions are sines and cosines (as in the paper), added to all but the prefix tokens.
    """

    position: Tensor

    def __init__(self, encoder: VisionTransformer, dim: int = 96, depth: int = 1, num_heads: int = 3) -> None:
        """Build a decoder for one encoder.

        Args:
            encoder: encoder of the tokens and of the patch size.
            dim: width, a multiple of 4 and of `num_heads`.
            depth: number of blocks.
            num_heads: heads of each block.

        Raises:
            ValueError: the width or depth is invalid.
        """
        super().__init__()
        if dim < 4 or num_heads < 1 or dim % 4 or dim % num_heads:
            raise ValueError(f"decoder_dim must be a multiple of 4 and of decoder_num_heads {num_heads}, got {dim}")
        if depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, got {depth}")
        self.patch_size: tuple[int, int] = tuple(encoder.patch_embed.patch_size)
        self.num_prefix_tokens = encoder.num_prefix_tokens
        grid = [int(length) for length in encoder.patch_embed.grid_size]
        self.embed = nn.Linear(encoder.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.register_buffer("position", build_sincos2d_pos_embed(grid, dim), persistent=False)
        self.blocks = nn.Sequential(*(Block(dim, num_heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.pixels = nn.Linear(dim, self.patch_size[0] * self.patch_size[1] * encoder.in_chans)
        named_apply(get_init_weights_vit(""), self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, masking: Masking) -> Tensor:
        """Predict the pixels that :func:`hidden_patches` returns.

        Args:
            tokens: output of :func:`encode_visible` [B, E + V, D].
            masking: positions of these patches.

        Returns:
            Normalised pixels [B, M, h·w·C] of the hidden patches.
        """
        tokens = self.embed(tokens)
        prefix, visible = tokens.tensor_split([self.num_prefix_tokens], dim=1)
        # Attention ignores the order of its tokens, so that hidden patches may follow visible ones.
        visible = visible + self.position[masking.visible]
        hidden = self.mask_token + self.position[masking.hidden]
        tokens = self.norm(self.blocks(torch.cat([prefix, visible, hidden], dim=1)))
        return self.pixels(tokens[:, -hidden.shape[1] :])


def hidden_patches(image: Tensor, masking: Masking, patch_size: tuple[int, int]) -> Tensor:
    """Return the pixels to predict [B, M, h·w·C], each patch with mean 0 and variance 1 (section 4.1).

    Args:
        image: images [B, C, H, W].
        masking: visible and hidden patches.
        patch_size: h and w of a patch in pixels.
    """
    patches = _take(patchify(image, patch_size), masking.hidden)
    mean, std = _statistics(patches)
    return (patches - mean) / std


def fill_hidden(image: Tensor, masking: Masking, patch_size: tuple[int, int], predicted: Tensor | None) -> Tensor:
    """Return images with their hidden patches replaced by the prediction, or by zeros.

    Args:
        image: images [B, C, H, W].
        masking: visible and hidden patches.
        patch_size: h and w of a patch in pixels.
        predicted: normalised pixels [B, M, h·w·C], to which each patch's own mean and variance are given back, for no
            others are known; None for zeros.
    """
    patches = patchify(image, patch_size)
    hidden = _take(patches, masking.hidden)
    mean, std = _statistics(hidden)
    content = torch.zeros_like(hidden) if predicted is None else predicted * std + mean
    patches = patches.scatter(1, masking.hidden[..., None].expand_as(content), content)
    height, width = image.shape[-2] // patch_size[0], image.shape[-1] // patch_size[1]
    rows = patches.unflatten(2, (*patch_size, -1)).unflatten(1, (height, width))
    return rows.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def patchify(image: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut images [B, C, H, W] into patches [B, P, h·w·C], row by row, within a patch too; channels come last."""
    height, width = patch_size
    grid = image.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # [B, C, H/h, h, W/w, w]
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def check_encoder(encoder: nn.Module, name: str, size: tuple[int, int]) -> VisionTransformer:
    """Check that a model can be pretrained so, on images of a height and width in pixels.

    Raises:
        ValueError: it is not a ViT of timm on plain patches, or is for images of another size.
    """
    embed: Any = getattr(encoder, "patch_embed", None)
    if not isinstance(encoder, VisionTransformer) or not isinstance(embed, PatchEmbed):
        raise ValueError(  # noqa: TRY004  the model was chosen by its name
            f"{name} is no VisionTransformer of timm on patches: masked autoencoding is for these alone"
        )
    own, patch, theirs = ("×".join(map(str, lengths)) for lengths in (embed.img_size, embed.patch_size, size))
    if own != theirs:
        raise ValueError(
            f"{name} takes images of {own} pixels, the data have {theirs}: pass --data.img_size N, or "
            "--model.model_kwargs '{img_size: N}'"
        )
    if any(length % edge for length, edge in zip(size, embed.patch_size, strict=True)):
        raise ValueError(f"images of {theirs} pixels are not whole patches of {patch}, as masked autoencoding wants")
    return encoder


def _take(patches: Tensor, places: Tensor) -> Tensor:
    """Take patches [B, P, D] at positions [B, K]."""
    return patches.gather(1, places[..., None].expand(-1, -1, patches.shape[-1]))


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the pixels of each patch."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + EPSILON).sqrt()
