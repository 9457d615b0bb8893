"""The slow-fast neural encoding block of Terminator (arXiv 2401.17948).

With `A = x * K_g`, K_g a hyper-kernel as large as the map, `@` the global operator, IS and BS standardization over
instances and the batch:

    fast = IS(RGU(A) + RGU(x));  mix = IS(W x);  hci = IS(HCI(x))
    out, out_x, out_hci = A @ fast, A @ mix, A @ hci;  glu = SiLU(out);  hyp = HI(out, x)
    local_i = GELU(BS(W_i (k_i * z_i))): kernels of 3x3, 9x9, 5x5, 7x7, made from x, hci, mix, x,
        applied to hci, x, x, mix
    y = GELU(G-IBS(W_y [all of these and outputs of earlier blocks])) + scalar, then dropout of channels

Biases and scalars that a standardization takes away again are left out, unless `paper_compat`.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn

from visionattn.layers.hyper_interaction import HyperChannelInteraction, HyperInteraction, RecursiveGatedUnit
from visionattn.layers.positions_first import (
    adaptive_pool,
    pointwise,
    pointwise_sum,
    positions_first,
    split_channels,
)
from visionattn.layers.slow_network import ContextSlowNetwork, KernelInit, SlowNetwork
from visionattn.layers.standardization import BatchStandardization, GroupStandardization, instance_standardize
from visionattn_kernels import hyper_zzw_global, hyper_zzw_local
from visionattn_kernels.hyper import GlobalMode

Size = tuple[int, int]


@register_notrace_function
@torch.jit.ignore
def mix_globally(w_hat: Tensor, z: list[Tensor], mode: str) -> list[Tensor]:
    """`hyper_zzw_global`, opaque to FX and TorchScript."""
    return hyper_zzw_global(w_hat, z, cast(GlobalMode, mode))


@register_notrace_function
@torch.jit.ignore
def mix_locally(z: Tensor, kernel: Tensor) -> Tensor:
    """`hyper_zzw_local`, opaque to FX and TorchScript; `kernel` is `[1, C, kH, kW]` where all pictures share one."""
    kernel = kernel.to(z.dtype)
    return hyper_zzw_local(z, kernel[0] if len(kernel) < len(z) else kernel)


class LocalMixing(nn.Module):
    """Depthwise correlation with a kernel made from context, a 1x1 map, BS and GELU."""

    def __init__(
        self, dim: int, kernel_size: Size, ndim: int, paper_compat: bool, dd: dict[str, Any], **kw: Any
    ) -> None:
        """Takes `dim` channels; see `ContextSlowNetwork` for the rest."""
        super().__init__()
        self.kernel_size = kernel_size
        self.kernel = ContextSlowNetwork(dim, kernel_size, ndim, paper_compat=paper_compat, **kw, **dd)
        self.proj = nn.Conv2d(dim, dim, 1, bias=paper_compat, **dd)
        self.norm = BatchStandardization(dim, running_stats=not paper_compat, **dd)
        self.scalar = nn.Parameter(torch.zeros(1, **dd)) if paper_compat else None

    def forward(self, context: Tensor, z: Tensor) -> Tensor:
        """Mixes `z` `[B, dim, H, W]` with kernels made from `context` of the same shape."""
        kernel = self.kernel(adaptive_pool(context, self.kernel_size))
        y = F.gelu(self.norm(pointwise(mix_locally(z, kernel), self.proj.weight, self.proj.bias)))
        return y if self.scalar is None else y + self.scalar


class SlowFastBlock(nn.Module):
    """The block; maps positions-first `[B, dim, H, W]` and outputs of earlier blocks to `[B, dim_out, H, W]`."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        size: Size,
        ndim: int = 2,
        dense_dims: Sequence[int] = (),
        depth: int = 2,
        local_sizes: Sequence[int] = (3, 9, 5, 7),
        global_mode: GlobalMode = "matmul",
        drop_rate: float = 0.0,
        kernel_init: KernelInit = "gamma",
        omega_0: float = 2000.0,
        paper_compat: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Builds the block.

        Args:
            dim: Channels of the input.
            dim_out: Channels of the output, a multiple of 12.
            size: Height and width of the maps for which hyper-kernels are generated.
            ndim: Axes with coordinates: 1 for maps of one row, whose local kernels have one row, too.
            dense_dims: Channels of at most two earlier outputs, which are tiled to `dim`.
            depth: Hidden maps of the network that generates the global kernel.
            local_sizes: Edge of the kernels of `local_1` to `local_4`; 0 leaves one out.
            global_mode: How activations and global kernel are mixed, see `hyper_zzw_global`.
            drop_rate: Probability that a channel of the output is dropped.
            kernel_init: Initial frequencies of hyper-kernels, see `FilterNetwork`.
            omega_0: Their scale.
            paper_compat: Makes local kernels from the mean of the batch, standardizes by the batch at evaluation, and
                has the parameters without effect, all as the released network.
            device: Where parameters are made.
            dtype: Their type.
        """
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        slow: dict[str, Any] = {"init": kernel_init, "omega_0": omega_0}
        self.dim = dim
        self.global_mode: str = global_mode
        self.drop_rate = drop_rate
        self.kernel = SlowNetwork(dim, size, ndim, depth=depth, **slow, **dd)
        self.rgu_slow = RecursiveGatedUnit(dim, size, proj_bias=paper_compat, **dd)
        self.rgu_fast = RecursiveGatedUnit(dim, size, proj_bias=paper_compat, **dd)
        self.mix = nn.Conv2d(dim, dim, 1, bias=paper_compat, **dd)
        self.hci = HyperChannelInteraction(dim, **slow, **dd)
        self.hyper = HyperInteraction(dim, size, ndim, **slow, **dd)
        local = [
            LocalMixing(dim, (1 if ndim == 1 else k, k), ndim, paper_compat, dd, **slow) if k else None
            for k in local_sizes
        ]
        self.local_1, self.local_2, self.local_3, self.local_4 = local
        branches = 6 + sum(k > 0 for k in local_sizes) + len(dense_dims)
        self.proj = nn.Conv2d(branches * dim, dim_out, 1, bias=paper_compat, **dd)
        self.norm = GroupStandardization(dim_out, running_stats=not paper_compat, **dd)
        self.scalar = nn.Parameter(torch.zeros(1, **dd))
        nn.init.kaiming_normal_(self.mix.weight)
        nn.init.kaiming_normal_(self.proj.weight)
        for conv in (self.mix, self.proj):
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def branches(self, x: Tensor, dense: list[Tensor]) -> list[Tensor]:
        """What the last map combines, in its order: `[B, dim, H, W]` each, but earlier outputs as they are."""
        w_hat = x * self.kernel().to(x.dtype)
        weight, bias = self.rgu_fast.maps()
        mix_bias = torch.zeros_like(bias[: self.dim]) if self.mix.bias is None else self.mix.bias
        maps = pointwise(x, torch.cat((weight, self.mix.weight.flatten(1))), torch.cat((bias, mix_bias)))
        gates, mix = split_channels(maps, [2 * self.dim, self.dim])
        gates_slow = pointwise(w_hat, *self.rgu_slow.maps())
        fast_proj, slow_proj = self.rgu_fast.proj, self.rgu_slow.proj
        fast = pointwise_sum(
            [self.rgu_fast.gate(gates), self.rgu_slow.gate(gates_slow)],
            [fast_proj.weight.flatten(1), slow_proj.weight.flatten(1)],
            None if fast_proj.bias is None or slow_proj.bias is None else fast_proj.bias + slow_proj.bias,
        )
        fast = instance_standardize(fast)
        mix = instance_standardize(mix)
        hci = instance_standardize(self.hci(x))
        out, out_x, out_hci = mix_globally(w_hat, [fast, mix, hci], self.global_mode)
        found = [out]
        if self.local_2 is not None:
            found.append(self.local_2(hci, x))
        found += dense[:1]
        found += [fast, out_x]
        if self.local_1 is not None:
            found.append(self.local_1(x, hci))
        found.append(F.silu(out))
        if self.local_3 is not None:
            found.append(self.local_3(mix, x))
        found.append(out_hci)
        if self.local_4 is not None:
            found.append(self.local_4(x, mix))
        found += dense[1:]
        found.append(self.hyper(out, x))
        return found

    def forward(self, x: Tensor, dense: list[Tensor]) -> Tensor:
        """Maps `[B, dim, H, W]` and outputs of earlier blocks to `[B, dim_out, H, W]`."""
        branches = self.branches(positions_first(x), dense)
        weights = torch.cat(self.norm.split(self.proj.weight.flatten(1))).split(self.dim, 1)
        weights = [untile_columns(w, branch.shape[1]) for w, branch in zip(weights, branches)]  # noqa: B905  (TorchScript)
        bias = self.proj.bias
        if bias is not None:
            bias = torch.cat(self.norm.split(bias))
        y = pointwise_sum(branches, weights, bias)
        batch, instance = split_channels(y, [y.shape[1] // 2] * 2)
        halves = (
            F.gelu(self.norm.batch(batch)).add_(self.scalar),
            F.gelu(instance_standardize(instance)).add_(self.scalar),
        )
        return F.dropout2d(self.norm.join(*halves), self.drop_rate, self.training)


def tile_channels(x: Tensor, dim: int) -> Tensor:
    """Repeats the first axis of `x`, as a whole, until it has `dim` channels."""
    copies = -(-dim // x.shape[0])
    return x.repeat([copies] + [1] * (x.dim() - 1))[:dim]


def untile_columns(weight: Tensor, dim: int) -> Tensor:
    """The weight on `dim` channels that does what `weight` `[C_out, C]` does on their tiling to C channels."""
    copies = -(-weight.shape[1] // dim)
    if copies == 1:
        return weight
    return F.pad(weight, (0, copies * dim - weight.shape[1])).reshape(-1, copies, dim).sum(1)
