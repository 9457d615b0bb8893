"""Slow networks: kernels generated from the coordinates of their taps by a multiplicative filter network.

As in Terminator (arXiv 2401.17948), after "Multiplicative Filter Networks" (Fathony et al., ICLR 2021):

    g_l(c) = sin(U_l c + u_l);  h_0 = g_0;  h_l = g_l * (W_l h_(l-1) + b_l) + p;  kernel = W_o h_L + b_o

The grid of coordinates runs from -1 to 1 on each axis that a kernel has; p is a learned number per tap.

At the released `omega_0` of 2000 the frequencies are far beyond what a grid can hold: kernels start as noise, and a
change of the grid gives another kernel. Two things follow. A kernel for another size is interpolated from that of the
grid that was trained. And parameters stay in float32 where a half precision is asked for, as do the computations under
autocast: rounded frequencies would be another network.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.layers.precision import AtLeastSingle, at_least_single
from visionattn.layers.prepared import Prepared
from visionattn_kernels.tracing import without_autocast

KernelInit = Literal["gamma", "band_limited"]
Size = tuple[int, int]


class FilterNetwork(AtLeastSingle, Prepared):
    """Base of slow networks: filters of the coordinates, hidden maps and the last one.

    Shape letters: N taps, h hidden channels, C channels of the kernel.
    """

    def __init__(
        self,
        dim: int,
        size: Size,
        ndim: int,
        hidden: int,
        depth: int,
        init: KernelInit = "gamma",
        omega_0: float = 2000.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the network.

        Args:
            dim: Channels of the kernel.
            size: Its taps, `(kH, kW)`.
            ndim: Axes that have a coordinate: 2, or 1 for the last one alone.
            hidden: Channels of the network.
            depth: Its hidden maps (L).
            init: Of the frequencies U. "gamma": the released one, uniform in ±1/sqrt(ndim) times 2π·omega_0·γ, with γ
                from Gamma(6 / (l + 1), 1) per filter of layer l, without phases. "band_limited": uniform, so that no
                product of filters passes the highest frequency that the grid can hold, with phases.
            omega_0: Scale of "gamma".
            device: Device of the parameters.
            dtype: Type of the parameters, at least float32.

        Raises:
            ValueError: An argument is out of its range.
        """
        super().__init__()
        if init not in ("gamma", "band_limited"):
            raise ValueError(f'init must be "gamma" or "band_limited"; got {init!r}')
        if ndim not in (1, 2) or (ndim == 1 and size[0] != 1):
            raise ValueError(f"ndim must be 2, or 1 for kernels of one row; got {ndim} with taps {size[0]}x{size[1]}")
        dd: dict[str, Any] = {"device": device, "dtype": at_least_single(dtype)}
        self.size = size
        self.ndim = ndim
        self.hidden = hidden
        self.filters = nn.Linear(ndim, hidden * (depth + 1), **dd)
        self.layers = nn.ModuleList([nn.Linear(hidden, hidden, **dd) for _ in range(depth)])
        self.tap_bias = nn.Parameter(torch.zeros(size[0] * size[1], 1, **dd))
        self.proj = nn.Linear(hidden, dim, **dd)
        self._init_weights(init, omega_0)

    @torch.no_grad()
    def _init_weights(self, init: KernelInit, omega_0: float) -> None:
        frequency, phase = self.filters.weight, self.filters.bias
        depth = len(self.layers)
        if init == "gamma":
            nn.init.uniform_(frequency, -(self.ndim**-0.5), self.ndim**-0.5)
            nn.init.zeros_(phase)
            if frequency.device.type != "meta":
                shape = torch.tensor([6.0 / (level + 1) for level in range(depth + 1)])
                gamma = torch.distributions.Gamma(shape, torch.ones(())).sample((self.hidden,)).T.reshape(-1, 1)
                frequency.mul_(2 * math.pi * omega_0 * gamma.to(frequency))
        else:
            for axis, taps in enumerate(self.size[-self.ndim :]):
                bound = math.pi * max(taps - 1, 1) / 2 / (depth + 1)
                nn.init.uniform_(frequency[:, axis], -bound, bound)
            nn.init.uniform_(phase, -math.pi, math.pi)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
            nn.init.ones_(layer.bias)
        nn.init.kaiming_uniform_(self.proj.weight, nonlinearity="linear")
        self.proj.weight.mul_((self.size[0] * self.size[1]) ** -0.5)  # so that sums over a kernel keep their variance
        nn.init.zeros_(self.proj.bias)

    def filter_taps(self) -> list[Tensor]:
        """Return the filters g_l of every tap, `[N, h]` per layer."""
        axes = [
            torch.linspace(-1.0, 1.0, n, device=self.tap_bias.device, dtype=self.tap_bias.dtype)
            for n in self.size[-self.ndim :]
        ]
        grid = torch.stack([x.flatten() for x in torch.meshgrid(axes, indexing="ij")], 1)
        return list(self.filters(grid).sin().split(self.hidden, 1))


class SlowNetwork(FilterNetwork):
    """A kernel that depends on nothing but parameters."""

    def __init__(self, dim: int, size: Size, ndim: int = 2, hidden: int = 64, depth: int = 2, **kwargs: Any) -> None:
        """Build the network; see `FilterNetwork`."""
        super().__init__(dim, size, ndim, hidden, depth, **kwargs)
        self.out_size = size

    def set_size(self, size: Size) -> None:
        """Change the size of the kernel, which is interpolated from that of the grid, ends to ends."""
        self.out_size = size
        self.forget()

    def prepare(self) -> list[Tensor]:
        """Compute the kernel."""
        filters = self.filter_taps()
        h = filters[0]
        for level, layer in enumerate(self.layers):
            h = filters[level + 1] * layer(h) + self.tap_bias
        kernel = self.proj(h).reshape(self.size[0], self.size[1], -1).permute(2, 0, 1)
        return [resize_kernel(kernel, self.out_size)]

    def forward(self) -> Tensor:
        """Return the kernel `[C, kH, kW]`, in the precision of the parameters."""
        return self.prepared()[0]


def resize_kernel(kernel: Tensor, size: Size) -> Tensor:
    """Interpolate `[C, kH, kW]` linearly to `[C, *size]`, ends to ends."""
    if kernel.shape[1] == size[0] and kernel.shape[2] == size[1]:
        return kernel
    return F.interpolate(kernel[None], size, mode="bilinear", align_corners=True)[0]


class ContextSlowNetwork(FilterNetwork):
    """A small kernel that depends on a map of context, `[B, C, H, W]` to `[B, C, kH, kW]`.

    The map is pooled to the taps of the kernel and projected to the hidden channels, v. After each hidden map,
    `h = stopgrad(h) + 0.1 h / |h|`, the norm being over taps, then `h = h * fast_l(v)` with a 1x1 map fast_l.

    With `paper_compat` v is averaged over the batch, and there is one kernel for all, `[1, C, kH, kW]`.
    """

    def __init__(
        self,
        dim: int,
        size: Size,
        ndim: int = 2,
        hidden: int = 32,
        depth: int = 2,
        paper_compat: bool = False,
        **kw: Any,
    ) -> None:
        """Build the network; see `FilterNetwork`."""
        super().__init__(dim, size, ndim, hidden, depth, **kw)
        self.paper_compat = paper_compat
        dd: dict[str, Any] = {"device": self.tap_bias.device, "dtype": self.tap_bias.dtype}
        self.squeeze = nn.Linear(dim, hidden, **dd)
        self.context = nn.Linear(hidden, hidden, **dd)
        self.fast = nn.Linear(hidden, hidden * depth, **dd)
        nn.init.ones_(self.fast.bias)

    def prepare(self) -> list[Tensor]:
        """Compute the filters."""
        return self.filter_taps()

    def forward(self, pooled: Tensor) -> Tensor:
        """Map context that is pooled to the taps, `[B, C, kH, kW]`, to kernels `[B, C, kH, kW]`, `[1, ...]` if one."""
        with without_autocast(pooled.device):
            v = self.squeeze(pooled.to(self.tap_bias.dtype).flatten(2).transpose(1, 2))  # [B, N, h]
            if self.paper_compat:
                v = v.mean(0, keepdim=True)
            fast = self.fast(F.gelu(self.context(v))).split(self.hidden, 2)
            filters = self.prepared()
            h = filters[0][None]
            for level, layer in enumerate(self.layers):
                h = filters[level + 1] * layer(h) + self.tap_bias
                h = (h.detach() + 0.1 * F.normalize(h, dim=1)) * fast[level]
            kernel = self.proj(h)  # [B, N, C]
            return kernel.transpose(1, 2).reshape(kernel.shape[0], kernel.shape[2], self.size[0], self.size[1])
