"""Isotropic models of the NAT family: NAT and DiNAT on one map from end to end, and a ViT with relative bias.

They are those of "Dilated Neighborhood Attention Transformer" (Hassani and Shi, arXiv 2209.15001): patches of
16 pixels, twelve blocks of one width. The ViT is the same model with a window as large as the map at 224 pixels, 14x14:
windows move inward at the border, so every query sees every key. On smaller maps attention stays global; on larger
ones it is a sliding window until `set_input_size` widens it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from timm.models import checkpoint, generate_default_cfgs
from torch import Tensor, nn

from visionattn.layers.heads import check_positive
from visionattn.layers.mixers import create_mixer
from visionattn.layers.mixers.power import count_scales
from visionattn.layers.neighborhood_attention import KernelSize, NeighborhoodAttention2d
from visionattn.models._configs import image_config, register_variants
from visionattn.models._mixing import Mixer, MixerOptions, block_mixers
from visionattn.models._nat_blocks import (
    Block,
    LayerNorm2d,
    PatchEmbed,
    block_dilations,
    init_weights,
)
from visionattn.models._nat_checkpoints import checkpoint_filter_fn
from visionattn.models._nat_padding import follow_padding
from visionattn.models._weights import build_model
from visionattn.models.backbone import Backbone

__all__ = ["IsotropicNeighborhoodTransformer"]


class IsotropicBlock(Block):
    """A block that stands in the stack itself, so that the model has one output per block."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, dim, H, W]` to the same."""
        x = x.permute(0, 2, 3, 1)
        x = checkpoint(super().forward, x) if self.grad_checkpointing else super().forward(x)
        return x.permute(0, 3, 1, 2)


class IsotropicNeighborhoodTransformer(Backbone):
    """Patches, then blocks of neighborhood attention at one width and resolution; any input size works."""

    stack_name: ClassVar[str] = "blocks"
    undecayed: ClassVar[tuple[str, ...]] = ("rpb", "height_rel", "width_rel")

    def __init__(
        self,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 12,
        kernel_size: KernelSize | None = 7,
        dilation: int | Sequence[int] | Literal["largest"] = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        patch_size: int = 16,
        img_size: int | tuple[int, int] = 224,
        legacy_pad: bool | None = None,
        mixer: Mixer = "neighborhood",
        mixer_kwargs: MixerOptions = None,
        cpe: bool = False,
        patch_norm: bool = True,
        norm_eps: float = 1e-5,
        is_causal: bool = False,
        init_std: float = 0.02,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the network.

        Args:
            embed_dim: Width.
            depth: Blocks.
            num_heads: Attention heads.
            kernel_size: Keys per query and axis, or one number per axis; None for the whole map of `img_size`.
            dilation: Dilation of every second block, or one per block; "largest" for the largest that fits the map.
            mlp_ratio: Hidden width of an MLP over its width.
            qkv_bias: Whether queries, keys and values have a bias.
            layer_scale: Initial LayerScale of a block's branches; None for no LayerScale.
            patch_size: Pixels of a patch per axis.
            img_size: Height and width in pixels up to which attention is global, where `kernel_size` is None, and up to
                which the mixer `power` has a table per scale.
            legacy_pad: Attend to appended zeros on maps smaller than a window, as in the training of published
                weights. Otherwise a query sees its map only. None follows the loaded weights, and uses no zeros for a
                model from scratch.
            mixer: Token mixer of the blocks, one of `visionattn.layers.mixers.MIXERS`, or several that the blocks take
                in turn. Options of the model that a mixer does not have, such as `kernel_size`, do not apply to it.
            mixer_kwargs: Options of the mixer, or a list of them, one per name of `mixer`.
            cpe: Begin each block with a depthwise 3x3 convolution, added to its input: a conditional position
                encoding (arXiv 2102.10882).
            patch_norm: Normalise the patches.
            norm_eps: Epsilon of the norms of blocks and of the last norm.
            is_causal: On maps of one row, let positions see no later ones; every mixer must have this option.
            init_std: Standard deviation of the initial weights of linear layers.
            in_chans: Channels of an image.
            num_classes: Classes; 0 for no classifier.
            global_pool: Pooling before the classifier, as in timm ("avg", "max", ...); "" for none.
            drop_rate: Dropout before the classifier.
            proj_drop_rate: Dropout after attention projections and in MLPs.
            drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: `depth` is below 1, `num_heads` does not divide `embed_dim`, `dilation` does not have one entry
                per block, or a mixer has no such option.
        """
        super().__init__()
        check_positive(depth=depth)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.patch_size = patch_size
        self.is_global = kernel_size is None
        if kernel_size is None:
            kernel_size = self._map_size(img_size)
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, patch_norm, **dd)
        drop_path = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        shared = {
            "kernel_size": kernel_size,
            "qkv_bias": qkv_bias,
            "legacy_pad": bool(legacy_pad),
            "proj_drop": proj_drop_rate,
            "num_scales": count_scales(self._map_size(img_size)),
        }
        causal = {"is_causal": True} if is_causal else {}
        self.blocks = nn.Sequential()
        for (name, options), block_dilation, rate in zip(
            block_mixers(mixer, mixer_kwargs, depth), block_dilations(dilation, depth), drop_path, strict=True
        ):
            defaults = {**shared, "dilation": block_dilation}
            attn = create_mixer(name, embed_dim, num_heads, defaults=defaults, **{**causal, **options}, **dd)
            block = (embed_dim, attn, mlp_ratio, layer_scale, proj_drop_rate, rate, cpe, norm_eps, is_causal)
            self.blocks.append(IsotropicBlock(*block, **dd))
        self.norm: nn.Module = LayerNorm2d(embed_dim, eps=norm_eps, **dd)
        feature_info = [{"num_chs": embed_dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)]
        self.finish(feature_info, embed_dim, in_chans, num_classes, global_pool, drop_rate, **dd)
        self.apply(partial(init_weights, std=init_std))
        follow_padding(self, legacy_pad)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Make the attention of a ViT global up to another size, with interpolated tables.

        NAT does not change, nor do the windows of the mixers `core` and `routing`.

        Args:
            img_size: Height and width in pixels.
        """
        if self.is_global:
            for module in self.modules():
                if isinstance(module, NeighborhoodAttention2d):
                    module.set_kernel_size(self._map_size(img_size))

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images `[B, in_chans, H, W]` to normalized features `[B, embed_dim, H / 16, W / 16]`."""
        return self.norm(self.blocks(self.patch_embed(x)))

    def _map_size(self, img_size: int | tuple[int, int]) -> tuple[int, int]:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        return -(-height // self.patch_size), -(-width // self.patch_size)


def _cfg(file: str) -> dict[str, Any]:
    return image_config(
        url=f"https://shi-labs.com/projects/dinat/checkpoints/isotropic/{file}",
        pool_size=(14, 14),
        first_conv="patch_embed.proj",
        license="mit",
        paper_ids="arXiv:2209.15001",
        paper_name="Dilated Neighborhood Attention Transformer",
        origin_url="https://github.com/SHI-Labs/Neighborhood-Attention-Transformer",
    )


default_cfgs = generate_default_cfgs(
    {
        "nat_isotropic_small.in1k": _cfg("nat_isotropic_small_in1k_224.pth"),
        "nat_isotropic_base.in1k": _cfg("nat_isotropic_base_in1k_224.pth"),
        "dinat_isotropic_small.in1k": _cfg("dinat_isotropic_small_in1k_224.pth"),
        "dinat_isotropic_base.in1k": _cfg("dinat_isotropic_base_in1k_224.pth"),
        "vitrpb_small.in1k": _cfg("vitrpb_small_in1k_224.pth"),
        "vitrpb_base.in1k": _cfg("vitrpb_base_in1k_224.pth"),
    }
)


_SMALL: dict[str, Any] = {"embed_dim": 384, "num_heads": 12}
_BASE: dict[str, Any] = {"embed_dim": 768, "num_heads": 24}

build_isotropic = partial(
    build_model,
    IsotropicNeighborhoodTransformer,
    filter_fn=checkpoint_filter_fn,
    features={"out_indices": 3, "flatten_sequential": True},
)
"""Build an isotropic model; its features are those of the last three blocks by default."""

register_variants(
    __name__,
    build_isotropic,
    {
        "nat_isotropic_small": ("NAT-iso-Small.", _SMALL),
        "nat_isotropic_base": ("NAT-iso-Base.", _BASE),
        "dinat_isotropic_small": ("DiNAT-iso-Small.", {**_SMALL, "dilation": 2}),
        "dinat_isotropic_base": ("DiNAT-iso-Base.", {**_BASE, "dilation": 2}),
        "vitrpb_small": ("ViT-rpb-Small: attention to the whole map.", {**_SMALL, "kernel_size": None}),
        "vitrpb_base": ("ViT-rpb-Base: attention to the whole map.", {**_BASE, "kernel_size": None}),
    },
)
