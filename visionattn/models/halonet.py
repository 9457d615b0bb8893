"""HaloNet: a residual network whose 3x3 convolutions are blocked local attention.

Paper: "Scaling Local Self-Attention for Parameter Efficient Visual Backbones" (Vaswani et al., arXiv 2103.12731). Four
stages of bottlenecks: 1x1 convolution, halo attention, 1x1 convolution. The first attention of stages 2 to 4 computes
every second query. Modules map NCHW to NCHW, in channels-last memory, which attention needs.

The paper leaves some choices open. Ours: 4, 8, 8, 8 heads, which the paper also calls 16 channels; bottlenecks end in
an activation after the sum, the last norm of each starts at zero; `q.r` is scaled as `q.k` is. H3's final width is
the table's 1024 (11.84 M parameters), though 1280 would give the 12.3 M beside it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from timm.layers import BatchNormAct2d, ConvNormAct, DropPath
from timm.models import checkpoint_seq, generate_default_cfgs
from torch import Tensor, nn

from visionattn.layers.halo_attention import HaloAttention2d, channels_last, resize_table
from visionattn.models._configs import image_config, register_variants
from visionattn.models._weights import build_pyramid, packaged
from visionattn.models.backbone import Backbone

__all__ = ["HaloNet"]


class Bottleneck(nn.Module):
    """Residual block of a 1x1 convolution, halo attention or a 3x3 convolution, and a 1x1 convolution."""

    def __init__(
        self, dim: int, spatial: nn.Module, width: int, mid: int, dim_out: int, stride: int, drop_path: float, **dd: Any
    ) -> None:
        """Build a block from `dim` to `dim_out` channels; `spatial` maps `width` to `mid` with `stride`."""
        super().__init__()
        self.conv1 = ConvNormAct(dim, width, 1, act_layer=nn.SiLU, **dd)
        self.attn = spatial
        self.norm = BatchNormAct2d(mid, act_layer=nn.SiLU, **dd)
        self.conv2 = ConvNormAct(mid, dim_out, 1, apply_act=False, **dd)
        self.shortcut: nn.Module = (
            ConvNormAct(dim, dim_out, 1, stride, apply_act=False, **dd)
            if stride > 1 or dim != dim_out
            else nn.Identity()
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, dim, H, W]` to `[B, dim_out, ceil(H / stride), ceil(W / stride)]`."""
        branch = self.conv2(self.norm(self.attn(self.conv1(x))))
        return self.act(self.shortcut(x) + self.drop_path(branch))


class Stage(nn.Module):
    """A stack of blocks."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to this stage's width and size."""
        if self.grad_checkpointing:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class Stem(nn.Module):
    """The first layers, see `HaloNet`; gives channels-last memory."""

    def __init__(self, in_chans: int, dim: int, kind: str, **dd: Any) -> None:
        super().__init__()
        conv: Callable[..., nn.Module] = partial(ConvNormAct, act_layer=nn.SiLU, **dd)
        self.then: nn.Module = nn.Identity()
        if kind == "conv":
            self.conv, self.then = conv(in_chans, dim, 7, 2), nn.MaxPool2d(3, 2, 1)
        elif kind == "patch":
            self.conv = conv(in_chans, dim, 4, 4, padding=0)
        elif kind == "small":
            self.conv = conv(in_chans, dim, 3, 2)
        else:
            self.conv, self.then = conv(in_chans, dim // 2, 3), conv(dim // 2, dim, 3, 2)
        self.reduction = 4 if kind in ("conv", "patch") else 2

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_chans, H, W]` to `[B, dim, H', W']`."""
        return channels_last(self.then(self.conv(x)))


class HaloNet(Backbone):
    """HaloNet; any input size from 32 pixels up works, keys beyond the border take no part."""

    stem_name: ClassVar[str] = "stem"
    stack_name: ClassVar[str] = "stages"
    last_name: ClassVar[str] = "final_conv"
    undecayed: ClassVar[tuple[str, ...]] = ("height_rel", "width_rel")

    def __init__(
        self,
        embed_dim: int = 64,
        depths: Sequence[int] = (3, 3, 7, 3),
        num_heads: Sequence[int] = (4, 8, 8, 8),
        block_size: int = 8,
        halo_size: int = 3,
        value_ratio: float = 1.0,
        output_ratio: float = 1.0,
        final_dim: int | None = None,
        conv_stages: int = 0,
        stem: Literal["conv", "patch", "small", "deep"] = "conv",
        stem_dim: int = 64,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_last: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the network.

        Args:
            embed_dim: Width of queries and keys in the first stage; each stage doubles it.
            depths: Blocks per stage.
            num_heads: Attention heads per stage.
            block_size: Edge of a block of queries (the paper's b).
            halo_size: Keys seen on each side of a block (h).
            value_ratio: Width of values over that of queries (r_v).
            output_ratio: Width of a block's output over that of queries (r_b).
            final_dim: Width of a last 1x1 convolution (d_f); None for none.
            conv_stages: Number of first stages with 3x3 convolutions in place of attention.
            stem: The paper's 7x7 convolution and 3x3 max-pool, each of stride 2 ("conv"); patches of 4x4 pixels
                ("patch"), of which incomplete ones are left out; for small images, a 3x3 convolution of stride 2
                ("small"), or one of stride 1 and half the channels before it ("deep").
            stem_dim: Channels of the stem.
            in_chans: Channels of an image.
            num_classes: Classes; 0 for no classifier.
            global_pool: Pooling before the classifier, as in timm ("avg", "max", ...); "" for none.
            drop_rate: Dropout before the classifier.
            drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
            zero_init_last: Whether blocks are initialised as their shortcut.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: Arguments do not fit each other.
        """
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if len(num_heads) != len(depths):
            raise ValueError(f"num_heads must have one entry per stage, {len(depths)}; got {len(num_heads)}")
        if not 0 <= conv_stages <= len(depths):
            raise ValueError(f"conv_stages must be from 0 to the number of stages, {len(depths)}; got {conv_stages}")
        if stem not in ("conv", "patch", "small", "deep"):
            raise ValueError(f"stem must be 'conv', 'patch', 'small' or 'deep'; got {stem!r}")
        self.stem = Stem(in_chans, stem_dim, stem, **dd)
        drop_path = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        feature_info: list[dict[str, Any]] = []
        self.stages = nn.Sequential()
        dim = stem_dim
        for i, depth in enumerate(depths):
            width = embed_dim * 2**i
            mid, dim_out = int(width * value_ratio), int(width * output_ratio)
            if i < conv_stages:
                spatial: Callable[..., nn.Module] = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False, **dd)
            else:
                spatial = partial(
                    HaloAttention2d,
                    num_heads=num_heads[i],
                    block_size=block_size,
                    halo_size=halo_size,
                    scale_rel_pos=True,
                    **dd,
                )
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(
                    Bottleneck(
                        dim, spatial(width, mid, stride=stride), width, mid, dim_out, stride, next(drop_path), **dd
                    )
                )
                dim = dim_out
            self.stages.append(Stage(blocks))
            feature_info.append({"num_chs": dim, "reduction": self.stem.reduction * 2**i, "module": f"stages.{i}"})
        self.final_conv: nn.Module = nn.Identity()
        if final_dim:
            self.final_conv = ConvNormAct(dim, final_dim, 1, act_layer=nn.SiLU, **dd)
        self.finish(feature_info, final_dim or dim, in_chans, num_classes, global_pool, drop_rate, **dd)
        self._init_weights(zero_init_last)

    def _init_weights(self, zero_init_last: bool) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.endswith((".q", ".kv")):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Bottleneck) and zero_init_last:
                nn.init.zeros_(module.conv2.bn.weight)

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        block_size: int | None = None,
        halo_size: int | None = None,
    ) -> None:
        """Change the attention windows and interpolate relative tables; any image size works without this."""
        for module in self.modules():
            if isinstance(module, HaloAttention2d):
                module.set_window(block_size or module.block_size, module.halo_size if halo_size is None else halo_size)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images `[B, in_chans, H, W]` to features `[B, num_features, H / 32, W / 32]`, rounded up."""
        return self.final_conv(self.stages(self.stem(x)))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: HaloNet) -> dict[str, Tensor]:
    """Fit the relative tables of a checkpoint to the windows of a model."""
    own = model.state_dict()
    return {
        name: resize_table(x, len(own[name])) if name.endswith(("height_rel", "width_rel")) and name in own else x
        for name, x in state_dict.items()
    }


def _cfg(size: int = 256, **kwargs: Any) -> dict[str, Any]:
    return image_config(
        **{
            "input_size": (3, size, size),
            "pool_size": (-(-size // 32), -(-size // 32)),
            "first_conv": "stem.conv.conv",
            "paper_ids": "arXiv:2103.12731",
            "paper_name": "Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
            **kwargs,
        }
    )


# The paper's table 3: image size, then block, halo, r_v, r_b, blocks of stage 3 and d_f.
_H: dict[str, tuple[int, int, int, float, float, int, int | None]] = {
    "halo_h0": (256, 8, 3, 1.0, 0.5, 7, None),
    "halo_h1": (256, 8, 3, 1.0, 1.0, 10, None),
    "halo_h2": (256, 8, 3, 1.0, 1.25, 11, None),
    "halo_h3": (320, 10, 3, 1.0, 1.5, 12, 1024),
    "halo_h4": (384, 12, 2, 1.0, 3.0, 12, 1280),
    "halo_h5": (448, 14, 2, 2.5, 2.0, 23, 1536),
    "halo_h6": (512, 8, 4, 3.0, 2.75, 24, 1536),
    "halo_h7": (600, 10, 3, 4.0, 3.5, 26, 2048),
}
_PICO = {
    "embed_dim": 32,
    "stem_dim": 32,
    "depths": (2, 3, 2),
    "num_heads": (2, 4, 8),
    "block_size": 4,
    "halo_size": 2,
    "output_ratio": 2.0,
    "stem": "small",
}
_AT_32 = _cfg(32, pool_size=(4, 4), crop_pct=1.0, num_classes=10)

default_cfgs = generate_default_cfgs(
    {
        "halo_pico.cifar10": {**_AT_32, **packaged("halo_pico.cifar10")},
        "halo_pico_stem.untrained": _AT_32,
        **{f"{name}.untrained": _cfg(row[0]) for name, row in _H.items()},
        "halo_h4_conv12.untrained": _cfg(384),
        "halo_h7_conv12.untrained": _cfg(600),
        "halo_h4_base128.untrained": _cfg(256),
        "halo_h4_base128_conv12.untrained": _cfg(256),
        "halo_h4_base128_patch4.untrained": _cfg(256),
    }
)


def _table(name: str, **changes: Any) -> dict[str, Any]:
    _, block_size, halo_size, value_ratio, output_ratio, depth, final_dim = _H[name]
    return {
        "depths": (3, 3, depth, 3),
        "block_size": block_size,
        "halo_size": halo_size,
        "value_ratio": value_ratio,
        "output_ratio": output_ratio,
        "final_dim": final_dim,
        **changes,
    }


register_variants(
    __name__,
    partial(build_pyramid, HaloNet, filter_fn=checkpoint_filter_fn),
    {
        "halo_pico": (
            "HaloNet for images of 32 to 64 pixels and for CPUs, of our own making: three stages.",
            _PICO,
        ),
        "halo_pico_stem": (
            "HaloNet-Pico, wider, with two convolutions as stem, and convolutions in stage 1.",
            {**_PICO, "embed_dim": 48, "stem_dim": 48, "stem": "deep", "conv_stages": 1},
        ),
        "halo_h0": ("HaloNet-H0.", _table("halo_h0")),
        "halo_h1": ("HaloNet-H1.", _table("halo_h1")),
        "halo_h2": ("HaloNet-H2.", _table("halo_h2")),
        "halo_h3": ("HaloNet-H3.", _table("halo_h3")),
        "halo_h4": ("HaloNet-H4.", _table("halo_h4")),
        "halo_h5": ("HaloNet-H5.", _table("halo_h5")),
        "halo_h6": ("HaloNet-H6.", _table("halo_h6")),
        "halo_h7": ("HaloNet-H7.", _table("halo_h7")),
        "halo_h4_conv12": ("HaloNet-H4 with convolutions in stages 1 and 2.", _table("halo_h4", conv_stages=2)),
        "halo_h7_conv12": (
            "HaloNet-H7 with convolutions in stages 1 and 2: 0.2 points for half the training time.",
            _table("halo_h7", conv_stages=2),
        ),
        "halo_h4_base128": (
            "HaloNet-H4 of twice the width, for transfer from ImageNet-21k at 256, 384 and 512 pixels.",
            _table("halo_h4", embed_dim=128),
        ),
        "halo_h4_base128_conv12": (
            "The transfer model with convolutions in stages 1 and 2.",
            _table("halo_h4", embed_dim=128, conv_stages=2),
        ),
        "halo_h4_base128_patch4": (
            "The transfer model on patches of 4x4 pixels.",
            _table("halo_h4", embed_dim=128, stem="patch"),
        ),
    },
)
