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
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from visionattn.layers.hyper_interaction import HyperChannelInteraction, HyperInteraction, RecursiveGatedUnit
from visionattn.layers.positions_first import (
    adaptive_pool,
    bias_of,
    pointwise,
    pointwise_sum,
    positions_first,
)
from visionattn.layers.prepared import Prepared
from visionattn.layers.slow_network import ContextSlowNetwork, KernelInit, SlowNetwork
from visionattn.layers.standardization import BatchStandardization, GroupStandardization, instance_standardize
from visionattn_kernels import hyper_zzw_global, hyper_zzw_local
from visionattn_kernels.hyper.api import GlobalMode
from visionattn_kernels.tracing import without_autocast

Size = tuple[int, int]


def mix_locally(z: Tensor, kernel: Tensor) -> Tensor:
    """Apply `hyper_zzw_local`; `kernel` is `[1, C, kH, kW]` if all images share one."""
    kernel = kernel.to(z.dtype)
    return hyper_zzw_local(z, kernel[0] if kernel.shape[0] < z.shape[0] else kernel)


class LocalMixing(Prepared):
    """Depthwise correlation with a kernel made from context, a 1x1 map, BS and GELU."""

    def __init__(
        self, dim: int, kernel_size: Size, ndim: int, paper_compat: bool, dd: dict[str, Any], **kw: Any
    ) -> None:
        """Build the module for `dim` channels; see `ContextSlowNetwork` for the rest."""
        super().__init__()
        self.kernel_size = kernel_size
        self.kernel = ContextSlowNetwork(dim, kernel_size, ndim, paper_compat=paper_compat, **kw, **dd)
        self.proj = nn.Conv2d(dim, dim, 1, bias=paper_compat, **dd)
        self.norm = BatchStandardization(dim, running_stats=not paper_compat, **dd)
        self.scalar = nn.Parameter(torch.zeros(1, **dd)) if paper_compat else None

    def prepare(self) -> list[Tensor]:
        """Return weight and bias of the 1x1 map, with BS folded in if its statistics are constants."""
        weight, bias = self.proj.weight.flatten(1), bias_of(self.proj.weight, self.proj.bias)
        if self.norm.uses_running_stats():
            weight, bias = self.norm.fold(weight, bias)
        return [weight, bias]

    def forward(self, context: Tensor, z: Tensor) -> Tensor:
        """Mix `z` `[B, dim, H, W]` with kernels made from `context` of the same shape."""
        kernel = self.kernel(adaptive_pool(context, self.kernel_size))
        weight, bias = self.prepared()
        folded = self.norm.uses_running_stats()
        y = pointwise(mix_locally(z, kernel), weight, bias, activate=folded)
        return y if folded else self.norm(y, self.scalar, activate=True, inplace=True)


@register_notrace_module  # FX would trace what is prepared, not keep it
class SlowFastBlock(Prepared):
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
        """Build the block.

        Args:
            dim: Channels of the input.
            dim_out: Channels of the output, a multiple of 12.
            size: Height and width of the maps for which hyper-kernels are generated.
            ndim: Axes with coordinates: 1 for maps of one row, whose local kernels also have one row.
            dense_dims: Channels of at most two earlier outputs, which are tiled to `dim`.
            depth: Hidden maps of the network that generates the global kernel.
            local_sizes: Edge of the kernels of `local_1` to `local_4`; 0 leaves one out.
            global_mode: How activations and global kernel are mixed, see `hyper_zzw_global`.
            drop_rate: Probability that a channel of the output is dropped.
            kernel_init: Initial frequencies of hyper-kernels, see `FilterNetwork`.
            omega_0: Their scale.
            paper_compat: Makes local kernels from the mean of the batch, standardizes by the batch at evaluation, and
                has the parameters without effect, all as the released network.
            device: Device of the parameters.
            dtype: Type of the parameters.
        """
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        slow: dict[str, Any] = {"init": kernel_init, "omega_0": omega_0}
        self.dim = dim
        self.global_mode = global_mode
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
        dims: list[int | None] = [dim, local_sizes[1] and dim, *dense_dims[:1], dim, dim, local_sizes[0] and dim, dim]
        dims += [local_sizes[2] and dim, dim, local_sizes[3] and dim, *dense_dims[1:], dim]
        self.branch_dims = [x for x in dims if x]
        self.proj = nn.Conv2d(len(self.branch_dims) * dim, dim_out, 1, bias=paper_compat, **dd)
        self.norm = GroupStandardization(dim_out, running_stats=not paper_compat, **dd)
        self.scalar = nn.Parameter(torch.zeros(1, **dd))
        nn.init.kaiming_normal_(self.mix.weight)
        nn.init.kaiming_normal_(self.proj.weight)
        for conv in (self.mix, self.proj):
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def prepare(self) -> list[Tensor]:
        """Return weights and biases of the 1x1 maps: RGUs' beginnings, `mix`, RGUs' ends, branches."""
        fast, slow = self.rgu_fast, self.rgu_slow
        found = [*fast.maps(), *slow.maps(), self.mix.weight.flatten(1), bias_of(self.mix.weight, self.mix.bias)]
        found += [fast.proj.weight.flatten(1), slow.proj.weight.flatten(1)]
        found.append(bias_of(fast.proj.weight, fast.proj.bias) + bias_of(slow.proj.weight, slow.proj.bias))
        found.append(bias_of(self.proj.weight, self.proj.bias))
        columns = self.proj.weight.flatten(1).split(self.dim, 1)
        found += [untile_columns(w, dim) for w, dim in zip(columns, self.branch_dims, strict=True)]
        return found

    def branches(self, x: Tensor, dense: list[Tensor], maps: list[Tensor]) -> list[Tensor]:
        """Return the inputs of the last map, in its order: `[B, dim, H, W]` each; earlier outputs unchanged."""
        w_hat = x * self.kernel().to(x.dtype)
        gates = [self.rgu_fast.gate(x, maps[0], maps[1]), self.rgu_slow.gate(w_hat, maps[2], maps[3])]
        fast = instance_standardize(pointwise_sum(gates, maps[6:8], maps[8]), inplace=True)
        mix = instance_standardize(pointwise(x, maps[4], maps[5]), inplace=True)
        hci = self.hci.standardized(x)
        out, out_x, out_hci = hyper_zzw_global(w_hat, [fast, mix, hci], self.global_mode)
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
        """Map `[B, dim, H, W]` and outputs of earlier blocks to `[B, dim_out, H, W]`."""
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # The order of memory that makes the block fast has no fast convolutions in bfloat16.
            with without_autocast(x.device):
                return self.forward(x.to(self.mix.weight.dtype), dense)
        maps = self.prepared()
        y = pointwise_sum(self.branches(positions_first(x), dense, maps[:9]), maps[10:], maps[9])
        return F.dropout2d(self.norm(y, self.scalar, activate=True, inplace=True), self.drop_rate, self.training)


def tile_channels(x: Tensor, dim: int) -> Tensor:
    """Repeat the first axis of `x`, as a whole, until it has `dim` channels."""
    copies = -(-dim // x.shape[0])
    return x.repeat([copies] + [1] * (x.dim() - 1))[:dim]


def untile_columns(weight: Tensor, dim: int) -> Tensor:
    """Return the weight on `dim` channels that is equivalent to `weight` `[C_out, C]` on their tiling to C."""
    if weight.shape[1] == dim:
        return weight
    copies = -(-weight.shape[1] // dim)
    return F.pad(weight, (0, copies * dim - weight.shape[1])).reshape(-1, copies, dim).sum(1)
