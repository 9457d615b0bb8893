"""Problems that are measured: windows and maps of published networks, and the least work that computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels import Window

Direction = Literal["forward", "forward+backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "forward+backward")


@dataclass(frozen=True)
class Problem:
    """One windowed attention: from q, k, v and, with `rpb`, a bias table to the output, all heads-last.

    Attributes:
        name: What it is called in the tables.
        window: Which keys a query sees.
        size: Height and width of the map.
        batch: Images.
        heads: Attention heads.
        head_dim: Channels of a head.
        rpb: Whether there is a relative bias table.
    """

    name: str
    window: Window
    size: tuple[int, int]
    batch: int
    heads: int
    head_dim: int
    rpb: bool = False

    num_maps: ClassVar[int] = 3
    """So many of the tensors, the first ones, have a batch dimension."""

    def make_tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Draw random leaves that a contender maps to the output."""
        shapes = [(self.batch, *self.size, self.heads, self.head_dim)] * 3
        tables = [(self.heads, *(2 * k - 1 for k in self.window.kernel_size))] if self.rpb else []
        return tuple(torch.randn(x, device=device, dtype=dtype).requires_grad_() for x in (*shapes, *tables))

    def arguments(self, *tensors: Tensor) -> dict[str, Tensor]:
        """Return the tensors of `windowed_attention` by name."""
        return dict(zip(("q", "k", "v", "rpb"), tensors, strict=False))

    def to_output(self, out: Tensor) -> Tensor:
        """Convert heads-last attention output `[B, H, W, heads, head_dim]` to the layout that contenders return."""
        return out

    def to_heads_last(self, out: Tensor) -> Tensor:
        """Invert `to_output`."""
        return out

    def flops(self, direction: Direction) -> float:
        """Count floating-point operations of visible pairs; backward has five products to forward's two."""
        pairs = self.batch * self.heads * self.window.count_pairs(self.size)
        return 4.0 * pairs * self.head_dim * (1 if direction == "forward" else 3.5)

    def bytes_moved(self, tensors: tuple[Tensor, ...], direction: Direction) -> float:
        """Count bytes if each pass reads its inputs and writes its outputs once.

        Backward reads the inputs, the output and its gradient, and writes the gradients of the inputs.
        """
        out = self.batch * self.size[0] * self.size[1] * self.heads * self.head_dim
        elements = out + sum(x.numel() for x in tensors)
        return float(elements * tensors[0].element_size() * (1 if direction == "forward" else 3))


@dataclass(frozen=True)
class HaloLayer(Problem):
    """HaloNet's attention layer on NCHW maps, as timm's `HaloAttn` has it, from its parameters.

    Two 1x1 projections (queries; keys and values, interleaved by head), decomposed relative logits of the unscaled
    queries, and zero vectors beyond the border that take part in the softmax.
    """

    num_maps: ClassVar[int] = 1

    @property
    def block_size(self) -> int:
        """Return the edge of a block of queries."""
        return self.window.stride[0]

    @property
    def halo_size(self) -> int:
        """Return the number of keys seen on each side of a block."""
        return (self.window.kernel_size[0] - self.block_size) // 2

    def make_tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Draw maps, weights of queries, of keys and values, and tables of rows and columns, at timm's scale."""
        dim = self.heads * self.head_dim
        table = (2 * self.window.kernel_size[0] - 1, self.head_dim)
        shapes = [(self.batch, dim, *self.size), (dim, dim, 1, 1), (2 * dim, dim, 1, 1), table, table]
        scales = [1.0, dim**-0.5, dim**-0.5, self.head_dim**-0.5, self.head_dim**-0.5]
        drawn = [scale * torch.randn(x, device=device) for x, scale in zip(shapes, scales, strict=True)]
        return tuple(x.to(dtype).requires_grad_() for x in drawn)

    def arguments(self, *tensors: Tensor) -> dict[str, Tensor]:
        """Project the maps, and the queries onto the relative tables."""
        x, query, key_value, rows, columns = tensors
        x = x.permute(0, 2, 3, 1)
        q = F.linear(x, query.flatten(1)).unflatten(-1, (self.heads, self.head_dim))
        k, v = F.linear(x, key_value.flatten(1)).unflatten(-1, (self.heads, 2 * self.head_dim)).chunk(2, -1)
        # timm counts a key from the start of the halo, this library from the query's block.
        halo = self.halo_size
        rel_h, rel_w = (q @ F.pad(table[halo:], (0, 0, 0, halo)).T for table in (rows, columns))
        return {"q": q, "k": k, "v": v, "rel_h": rel_h, "rel_w": rel_w}

    def to_output(self, out: Tensor) -> Tensor:
        """Convert to NCHW."""
        return out.flatten(-2).permute(0, 3, 1, 2).contiguous()

    def to_heads_last(self, out: Tensor) -> Tensor:
        """Convert from NCHW."""
        return out.permute(0, 2, 3, 1).unflatten(-1, (self.heads, self.head_dim))

    def flops(self, direction: Direction) -> float:
        """Count operations of attention, of the projections, and of the relative logits that are read."""
        dim, positions = self.heads * self.head_dim, self.batch * self.size[0] * self.size[1]
        linear = 2.0 * positions * dim * (3 * dim + sum(self.window.kernel_size))
        return super().flops(direction) + linear * (1 if direction == "forward" else 3)


NAT_TINY = ((56, 2, 8), (28, 4, 4), (14, 8, 2), (7, 16, 1))
"""Map, heads and DiNAT's dilation of each stage, at 224 pixels."""


def attention_problems(device: torch.device, batch: int | None, quick: bool) -> list[Problem]:
    """Return the problems of a device; `batch` overrides that of the networks' stages."""
    if quick:
        layer = HaloLayer("halonet-layer B2 16x16 h2 c8 b4 h1", Window.create(6, 4, boundary="zero"), (16, 16), 2, 2, 8)
        return [*_nat_stages(2, ((14, 2, 4),), head_dim=8, kernel_size=3), layer]
    if device.type == "cpu":
        return [*_nat_stages(batch or 4), *_halonet_stage(batch or 4)]
    return [*_nat_stages(batch or 128), *_halonet_stage(batch or 128), *_natten_profiler()]


def _nat_stages(
    batch: int, stages: tuple[tuple[int, int, int], ...] = NAT_TINY, head_dim: int = 32, kernel_size: int = 7
) -> list[Problem]:
    """Return stages of NAT (d 1) and DiNAT, with and without relative bias."""
    found = []
    for stage, (length, heads, dilation) in enumerate(stages, 1):
        for d in sorted({1, dilation}):
            for rpb in (False, True):
                shape = f"B{batch} {length}x{length} h{heads} c{head_dim} k{kernel_size} d{d}"
                name = f"nat-tiny-{stage} {shape}{' rpb' if rpb else ''}"
                window = Window.create(kernel_size, dilation=d)
                found.append(Problem(name, window, (length, length), batch, heads, head_dim, rpb))
    return found


def _halonet_stage(batch: int) -> list[Problem]:
    """Return a stage of HaloNet: its attention alone (of the paper: masked), and the whole layer as timm has it."""
    shape = f"B{batch} 64x64 h4 c16 b8 h3"
    masked, zero = Window.create(14, 8, boundary="mask"), Window.create(14, 8, boundary="zero")
    return [
        Problem(f"halonet {shape}", masked, (64, 64), batch, 4, 16),
        HaloLayer(f"halonet-layer {shape}", zero, (64, 64), batch, 4, 16),
    ]


def _natten_profiler() -> list[Problem]:
    """Return the 1-D problem and the 2-D one (FLUX at 4K) of the documentation of NATTEN's profiler."""
    return [
        Problem("na1d B1 L32768 h1 c128 w2048", Window.create((1, 2048)), (1, 32768), 1, 1, 128),
        Problem("na2d B1 256x256 h24 c128 w80", Window.create(80), (256, 256), 1, 24, 128),
        Problem("na2d B1 256x256 h24 c128 w80 s16", Window.create(80, 16), (256, 256), 1, 24, 128),
    ]
