"""Terminator: slow-fast neural encoding blocks of HyperZ·Z·W at full resolution.

Paper: "HyperZ·Z·W Operator Connects Slow-Fast Networks for Full Context Interaction" (Zhang, arXiv 2401.17948). Blocks
widen the map and never shrink it. There is no stem and no residual sum, but later blocks also take outputs
of earlier ones. Written from a description of the paper and of the code released with it in 2024.

By default a prediction depends on its image alone. `paper_compat=True` is the released network: local kernels from
the mean of the batch, statistics of the batch at evaluation, and 1,336,855 parameters for 10 classes. Of these 2,441
have no effect, since a standardization removes them; they are left out otherwise:

    biases of W_y of two RGUs, of the 1x1 map before `mix`, and of four local branches      7 * (3+12+36+72+144) = 1,869
    biases of the last map of each block                                                       12+36+72+144+288 =   552
    scalars after the local branches                                                                      4 * 5 =    20

The released code has another scalar between blocks, which was not registered and never trained; both modes omit it.

Parts of timm's contract do not hold. Hyper-kernels and position biases have the size of the map, so that another input
size needs `img_size` or `set_input_size`. Mode "matmul" needs square maps. All features have one resolution. There are
no residual branches, hence no `drop_path_rate`. Nearly all layers of the first block have as many channels as an
image, so that weights for other `in_chans` are refused. Sequences are maps of one row, with `pool_size` (1, L). Slow
networks stay in float32 if half precision is asked for, see `visionattn.layers.slow_network`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_device_dtype, register_notrace_function
from timm.models import generate_default_cfgs, resolve_pretrained_cfg
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visionattn.layers.hyper_interaction import RecursiveGatedUnit
from visionattn.layers.sfne import SlowFastBlock, tile_channels
from visionattn.layers.slow_network import KernelInit
from visionattn.models._configs import image_config, register_variants
from visionattn.models._weights import build_model, packaged
from visionattn.models.backbone import Backbone
from visionattn_kernels.hyper.api import GlobalMode

__all__ = ["Terminator"]

Size = int | Sequence[int]


@register_notrace_function
def check_size(x: Tensor, height: int, width: int) -> None:
    """Refuse images of another size than the model's.

    Raises:
        ValueError: The size differs.
    """
    if x.dim() != 4 or x.shape[2] != height or x.shape[3] != width:
        raise ValueError(
            f"the model takes images [B, C, {height}, {width}]; got {list(x.shape)}: resize them, or call "
            f"set_input_size or build the model with img_size"
        )


class Stem(nn.Module):
    """Stem that checks the image size, and cuts images into patches if there is a convolution for that."""

    def __init__(self, img_size: tuple[int, int], proj: nn.Module | None) -> None:
        """Build the stem for images of a height and width."""
        super().__init__()
        self.img_size = img_size
        self.proj = nn.Identity() if proj is None else proj

    def forward(self, x: Tensor) -> Tensor:
        """Check images `[B, C, H, W]` and cut them into patches."""
        check_size(x, *self.img_size)
        return self.proj(x)


class Terminator(Backbone):
    """Terminator in two dimensions, or in one for sequences as maps of one row `[B, C, 1, L]`."""

    stem_name: ClassVar[str] = "stem"
    stack_name: ClassVar[str] = "blocks"
    undecayed: ClassVar[tuple[str, ...]] = ("filters.weight", "tap_bias", "position_bias")
    dense: list[list[int]]  # per block the earlier ones whose outputs it takes

    def __init__(
        self,
        img_size: Size = 32,
        grid_size: Size | None = None,
        patch_size: int = 1,
        stem_dim: int = 12,
        embed_dims: Sequence[int] = (12, 36, 72, 144, 288),
        slow_depths: Sequence[int] = (3, 2, 2, 2, 2),
        local_sizes: Sequence[int] = (3, 9, 5, 7),
        ndim: Literal[1, 2] = 2,
        global_mode: GlobalMode = "matmul",
        kernel_init: KernelInit = "gamma",
        omega_0: float = 2000.0,
        slow_loss_weight: float = 1.0,
        paper_compat: bool = False,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.05,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the network.

        Args:
            img_size: Height and width of the images, or an int for a square or the length of a sequence.
            grid_size: Size of the training images, if it differs from `img_size`: hyper-kernels are
                generated for it and interpolated.
            patch_size: Edge of the patches of a first convolution (an extension); 1 for none.
            stem_dim: Output channels of this convolution.
            embed_dims: Output channels of each block, multiples of 12.
            slow_depths: Hidden maps of each block's network for its global kernel.
            local_sizes: Edge of the four kinds of local kernels, see `SlowFastBlock`; 0 leaves one out.
            ndim: 1 for sequences: kernels of one row, coordinates of one axis.
            global_mode: "matmul", "elementwise" or "fftconv", see `hyper_zzw_global`.
            kernel_init: "gamma" or "band_limited", see `FilterNetwork`.
            omega_0: Scale of the frequencies of "gamma".
            slow_loss_weight: Weight of the slow neural loss in `auxiliary_losses`.
            paper_compat: Whether the network is the released one, see above.
            in_chans: Channels of an image.
            num_classes: Classes; 0 for no classifier.
            global_pool: Pooling before the classifier, as in timm ("avg", "max", ...); "" for none.
            drop_rate: Dropout before the classifier.
            proj_drop_rate: Dropout of whole channels after each block but the first.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: Arguments do not fit each other.
        """
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if len(slow_depths) != len(embed_dims):
            raise ValueError(f"slow_depths must have one entry per block, {len(embed_dims)}; got {len(slow_depths)}")
        if global_mode not in get_args(GlobalMode):
            raise ValueError(f"global_mode must be one of {', '.join(get_args(GlobalMode))}; got {global_mode!r}")
        self.ndim = ndim
        self.patch_size = (1 if ndim == 1 else patch_size, patch_size)
        self.global_mode = global_mode
        self.slow_loss_weight = slow_loss_weight
        self.img_size = self._check_img_size(img_size)
        grid = self._map_size(self._check_img_size(img_size if grid_size is None else grid_size))
        patches = nn.Conv2d(in_chans, stem_dim, self.patch_size, self.patch_size, **dd) if patch_size > 1 else None
        self.stem = Stem(self.img_size, patches)
        dim = in_chans if patches is None else stem_dim
        # A block takes the output of the block two before; from the fifth on also that of the block three before.
        self.dense = [[j for j in (i - 2, i - 3 if i >= 4 else -1) if j >= 0] for i in range(len(embed_dims))]
        self.blocks = nn.ModuleList()
        feature_info: list[dict[str, Any]] = []
        for i, dim_out in enumerate(embed_dims):
            self.blocks.append(
                SlowFastBlock(
                    dim,
                    dim_out,
                    grid,
                    ndim,
                    [embed_dims[j] for j in self.dense[i]],
                    slow_depths[i],
                    local_sizes,
                    global_mode,
                    proj_drop_rate if i else 0.0,
                    kernel_init,
                    omega_0,
                    paper_compat,
                    **dd,
                )
            )
            feature_info.append({"num_chs": dim_out, "reduction": patch_size, "module": f"blocks.{i}"})
            dim = dim_out
        self.norm: nn.Module = nn.Identity()
        self.finish(feature_info, dim, in_chans, num_classes, global_pool, drop_rate, **dd)
        self.set_input_size(self.img_size)

    def _check_img_size(self, img_size: Size) -> tuple[int, int]:
        if isinstance(img_size, int):
            img_size = (1 if self.ndim == 1 else img_size, img_size)
        if len(img_size) != 2 or min(img_size) < 1:
            raise ValueError(f"img_size must be a positive int or (height, width); got {img_size!r}")
        height, width = img_size
        if self.ndim == 1 and height != 1:
            raise ValueError(f"a model of sequences takes maps of one row, (1, length); got img_size {height}x{width}")
        if height % self.patch_size[0] or width % self.patch_size[1]:
            raise ValueError(f"img_size {height}x{width} is not a multiple of patch_size {self.patch_size[1]}: resize")
        if self.global_mode == "matmul" and self._map_size((height, width))[0] != self._map_size((height, width))[1]:
            raise ValueError(
                f'global_mode "matmul" multiplies square matrices; got img_size {height}x{width}: resize or pad '
                'images to a square, or choose global_mode "elementwise" or "fftconv"'
            )
        return height, width

    def _map_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        return img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1]

    def set_input_size(self, img_size: Size) -> None:
        """Change the image size; hyper-kernels and position biases are interpolated.

        Parameters stay as they are. To build such a model from saved weights, give `grid_size`.

        Raises:
            ValueError: The model cannot take this size.
        """
        self.img_size = self.stem.img_size = self._check_img_size(img_size)
        size = self._map_size(self.img_size)
        for module in self.modules():
            if isinstance(module, RecursiveGatedUnit):
                module.out_size = size
            elif isinstance(module, SlowFastBlock):
                module.kernel.set_size(size)
                module.hyper.spatial.set_size(size)

    def device_and_dtype(self) -> dict[str, Any]:
        """Return the device and dtype of maps; slow networks may keep a wider dtype."""
        return get_device_dtype(self.blocks[0].mix)

    def hyper_kernels(self) -> dict[str, Tensor]:
        """Return the kernels that depend on parameters alone, by name, `[C, kH, kW]` each.

        Per block `global` and `spatial`, as large as the map, and `gate` and `channel`, one row over channels.
        """
        found: dict[str, Tensor] = {}
        blocks: list[Any] = list(self.blocks)
        for i, block in enumerate(blocks):
            found[f"blocks.{i}.global"] = block.kernel()
            found[f"blocks.{i}.gate"] = block.hci.channel()
            found[f"blocks.{i}.channel"] = block.hyper.channel()
            found[f"blocks.{i}.spatial"] = block.hyper.spatial()
        return found

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Return the weighted slow neural loss, a part of the training objective.

        It holds the global kernels of the blocks together: the sum over all pairs of the mean squared difference of the
        later kernel and the earlier one, tiled to as many channels.
        """
        blocks: list[Any] = list(self.blocks)
        kernels = [block.kernel() for block in blocks]
        terms = [
            F.mse_loss(tile_channels(earlier, len(later)), later)
            for i, later in enumerate(kernels)
            for earlier in kernels[:i]
        ]
        return {"slow": self.slow_loss_weight * torch.stack(terms).sum()} if terms else {}

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images `[B, in_chans, H, W]` to features `[B, num_features, H / patch_size, W / patch_size]`."""
        return self.norm(self.run_stack(x, len(self.blocks))[-1])

    def run_stack(self, x: Tensor, count: int) -> list[Tensor]:
        """Map images `[B, in_chans, H, W]` to the outputs of the first `count` blocks."""
        x = self.stem(x)
        outputs: list[Tensor] = []
        for block, earlier in zip(list(self.blocks)[:count], self.dense, strict=False):
            dense = [outputs[j] for j in earlier]
            x = checkpoint(block, x, dense, use_reentrant=False) if self.grad_checkpointing else block(x, dense)
            outputs.append(x)
        return outputs


def _cfg(input_size: tuple[int, int, int] = (3, 32, 32), **kwargs: Any) -> dict[str, Any]:
    gray = input_size[0] == 1
    cfg: dict[str, Any] = {
        "num_classes": 10,
        "input_size": input_size,
        "fixed_input_size": True,
        "pool_size": input_size[1:],
        "crop_pct": 1.0,
        "mean": (0.1307,) if gray else (0.4914, 0.4822, 0.4465),  # of MNIST, of CIFAR-10
        "std": (0.3081,) if gray else (0.247, 0.2435, 0.2616),
        "first_conv": "blocks.0.mix",
        "paper_ids": "arXiv:2401.17948",
        "paper_name": "HyperZ·Z·W Operator Connects Slow-Fast Networks for Full Context Interaction",
    }
    return image_config(**{**cfg, **kwargs})


default_cfgs = generate_default_cfgs(
    {
        "terminator.untrained": _cfg(),
        "terminator_nine.untrained": _cfg(),
        "terminator_pico.cifar10": _cfg(**packaged("terminator_pico.cifar10")),
        "terminator_1d.untrained": _cfg((1, 1, 784)),
        "terminator_1d_pico.untrained": _cfg((1, 1, 784)),
        "terminator_patch4_224.untrained": _cfg(
            (3, 224, 224),
            num_classes=1000,
            pool_size=(56, 56),
            crop_pct=0.875,
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            first_conv="stem.proj",
        ),
    }
)


def _create_terminator(variant: str, pretrained: bool, **arch: Any) -> Terminator:
    if pretrained:
        _check_channels(variant, arch)
    blocks = len(arch.get("embed_dims", range(5)))
    return build_model(
        Terminator,
        variant,
        pretrained,
        features={"out_indices": tuple(range(blocks)), "feature_cls": "getter"},
        **arch,
    )


def _check_channels(variant: str, arch: dict[str, Any]) -> None:
    given = {name: arch.get(name) for name in ("pretrained_cfg", "pretrained_cfg_overlay")}
    trained, wanted = resolve_pretrained_cfg(variant, **given).input_size[0], arch.get("in_chans", 3)
    if wanted != trained and arch.get("patch_size", 1) == 1:
        raise ValueError(
            f"the weights of {variant} are for images of {trained} channels, got in_chans {wanted}: without patches, "
            f"layers are as wide as the image; give it {trained} channels, or build the model with pretrained=False"
        )


_PICO: dict[str, Any] = {"embed_dims": (12, 24, 36), "slow_depths": (3, 2, 2)}
_1D: dict[str, Any] = {"ndim": 1, "global_mode": "elementwise", "in_chans": 1}

register_variants(
    __name__,
    _create_terminator,
    {
        "terminator": ("Terminator with ten branches, for images of 32 pixels: the released network.", {}),
        "terminator_nine": (
            "Terminator with nine branches, without 3x3 kernels: a reconstruction of the paper's figure.",
            {"local_sizes": (0, 9, 5, 7)},
        ),
        "terminator_pico": ("Three narrow blocks, of our own making: for tests and CPUs.", _PICO),
        "terminator_1d": (
            "Terminator for sequences, 784 numbers long unless `img_size` says otherwise: a reconstruction.",
            _1D,
        ),
        "terminator_1d_pico": (
            "Three narrow blocks for sequences, of our own making: for tests and CPUs.",
            {**_1D, **_PICO},
        ),
        "terminator_patch4_224": (
            "Terminator without its first block on patches of 4x4 pixels, for ImageNet: our own extension.",
            {"patch_size": 4, "embed_dims": (36, 72, 144, 288), "slow_depths": (3, 2, 2, 2)},
        ),
    },
)
