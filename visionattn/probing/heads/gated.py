"""Poolings that come from convolutional networks: gates on the tokens, and the generalised mean."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.probing.heads.base import AttentivePooling, Pooling


class GemPooling(Pooling):
    """Generalised mean per channel, (mean_n max(x_n, eps)^p)^(1/p), with one learned p, at first 3.

    Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018, eq. 3,
    https://arxiv.org/abs/1711.02512, where features are not negative; negative entries of tokens count as eps.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim)
        self.eps = eps
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, dim]` of tokens `[B, N, dim]`."""
        # In logarithms no power of eps can vanish.
        log_sum = (self.p * tokens.clamp(min=self.eps).log()).logsumexp(1)
        return ((log_sum - math.log(tokens.shape[1])) / self.p).exp()


class GatedPooling(AttentivePooling):
    """Pooling by a gate per token: the sum of the gated tokens, which `takes_mean` divides by their number."""

    takes_mean: ClassVar[bool] = True

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[B, dim]` of tokens `[B, N, dim]`."""
        gates, x = self.attend(tokens)
        sums = (gates @ x).squeeze(1)
        return sums / tokens.shape[1] if self.takes_mean else sums


class DelfPooling(GatedPooling):
    """The sum of the tokens, each times a score that is not negative.

    Noh et al., "Large-Scale Image Retrieval with Attentive Deep Local Features", 2017, eq. 1,
    https://arxiv.org/abs/1612.06321; the score is two 1×1 convolutions and softplus (§4.2), with the 512 hidden
    channels of the authors' release.
    """

    takes_mean = False

    def __init__(self, dim: int, hidden_dim: int = 512) -> None:
        super().__init__(dim)
        self.score = nn.Sequential(nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1), nn.Softplus())

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores `[B, 1, N]` and the tokens."""
        return self.score(tokens).mT, tokens


class DolgPooling(GatedPooling):
    """The local branch of DOLG without its dilated convolutions: projected unit tokens, gated, then their mean.

    Yang et al., "DOLG: Single-Stage Image Retrieval with Deep Orthogonal Fusion of Local and Global Features", 2021,
    §3.2, https://arxiv.org/abs/2108.02927. The global branch has no counterpart in a single map of tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim)
        self.gate = nn.Sequential(nn.ReLU(), nn.Linear(dim, 1), nn.Softplus())

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return gates `[B, 1, N]` and the projected tokens, each of length 1."""
        x = self.norm(self.proj(tokens).flatten(0, 1)).view_as(tokens)
        return self.gate(x).mT, F.normalize(x, dim=-1)


class CbamPooling(GatedPooling):
    """A gate per channel, a gate per place, then the mean.

    Woo et al., "CBAM: Convolutional Block Attention Module", 2018, eq. 1-3, https://arxiv.org/abs/1807.06521. Channel
    gates come of the mean and the maximum over places through one MLP without biases; gates of places of the mean and
    the maximum over channels through a convolution and a batch norm.
    """

    def __init__(self, dim: int, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__(dim)
        hidden_dim = max(dim // reduction, 1)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden_dim, bias=False), nn.ReLU(), nn.Linear(hidden_dim, dim, bias=False)
        )
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return gates of places `[B, 1, N]`, and the tokens with gated channels.

        Raises:
            ValueError: N is not the square of a number.
        """
        side = math.isqrt(tokens.shape[1])
        if side**2 != tokens.shape[1]:
            raise ValueError(
                f"head cbam convolves the tokens as a square grid; got {tokens.shape[1]} tokens, and {side}×{side} "
                f"would be {side**2}; make images square or take a head that needs no grid"
            )
        x = tokens * (self.mlp(tokens.mean(1)) + self.mlp(tokens.amax(1))).sigmoid()[:, None]
        statistics = torch.stack([x.mean(-1), x.amax(-1)], dim=1)  # [B, 2, N]
        gates = self.norm(self.conv(statistics.unflatten(-1, (side, side)))).sigmoid()
        return gates.flatten(2), x
