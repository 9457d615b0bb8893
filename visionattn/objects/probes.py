"""Probes that tell from the embeddings x, y of two patches whether these lie on the same object, for L layers at once.

They are those of "Does Object Binding Naturally Emerge in Large Pretrained Vision Transformers?"
(https://arxiv.org/abs/2510.24709). Each has its parameters stacked over the layers and scores all pairs of an image by
matrix products, never a pair at a time. All are symmetric in x and y.

Shapes: L layers, B images of N patches, width D, rank K, C classes or queries.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.objects.patches import PatchLabels, PatchPairs

PROBES = ("quadratic", "quadratic_full", "diagonal", "linear", "class", "identity", "cosine", "dot")
"""What `create_probe` makes."""

EPSILON = 1e-6
"""Added to variances, and the least probability that a score is made of."""


class RunningNorm(nn.Module):
    """Brings tokens to a common scale: layer norm, then mean 0 and variance 1 of each channel.

    The layer norm has no parameters; it takes off how long tokens are, which differs by orders of magnitude within some
    backbones. Means and variances of channels are those of all patches of all batches seen in training so far, in
    training as well as in evaluation: batch norm, which takes those of the batch, would show a probe images in
    training relative to their batch. A probe of normalised tokens is one of tokens as they are, but for their lengths.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, num_layers: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(num_layers, 1))
        self.register_buffer("mean", torch.zeros(num_layers, dim))
        self.register_buffer("variance", torch.ones(num_layers, dim))

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Normalises tokens `[L, B, N, D]`, after taking account of them if in training mode."""
        normed = F.layer_norm(tokens, tokens.shape[-1:])
        if self.training:
            self._update(normed.flatten(1, 2))
        scale = (self.variance + EPSILON).rsqrt()
        return normed.sub_(self.mean[:, None, None]).mul_(scale[:, None, None])

    def to_tokens(self, weight: Tensor) -> Tensor:
        """Directions of normalised tokens as those of tokens as they are: `[L, K, D]` to `[L, K, D]`.

        The product of a direction with a normalised token is that with the token itself, over the token's standard
        deviation and up to a constant.
        """
        weight = weight * (self.variance + EPSILON).rsqrt()[:, None]
        return weight - weight.mean(-1, keepdim=True)

    def _update(self, rows: Tensor) -> None:
        """Merges means and variances `[L, D]` of rows `[L, M, D]`, after Chan et al., 1979."""
        origin = self.mean if self.count.any() else rows[:, 0]
        shifted = rows - origin[:, None]  # small sums, of which little is lost in the difference below
        offset = shifted.mean(1)
        variance = (shifted.square_().mean(1) - offset**2).clamp(min=0)
        total = self.count + rows.shape[1]
        share = rows.shape[1] / total
        delta = origin + offset - self.mean
        self.variance.mul_(1 - share).add_(variance * share + delta**2 * share * (1 - share))
        self.mean.add_(delta * share)
        self.count.copy_(total)


class Probe(nn.Module, ABC):
    """Normalised tokens `[L, B, N, D]` to scores of all pairs `[L, B, N, N]`; the higher, the likelier the same object.

    Attributes:
        has_threshold: Whether scores are logits, with 0 the threshold; otherwise one is to be fitted.
    """

    has_threshold: ClassVar[bool] = True

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Scores `[L, B, N, N]` of tokens `[L, B, N, D]`."""

    def loss(self, x: Tensor, labels: PatchLabels, pairs: PatchPairs) -> Tensor:
        """Loss of each layer, `[L]`: by default the mean binary cross-entropy of the counted pairs."""
        sign = 2.0 * pairs.same.to(x.dtype) - 1.0
        right = torch.sigmoid(self(x) * sign).flatten(1)  # [L, B·N·N]
        counted = pairs.counted.flatten().to(x.dtype)
        # The logarithm of a sigmoid: on CPUs, logsigmoid and softplus take ten times as long.
        logp = right.clamp(min=torch.finfo(x.dtype).tiny).log()
        return -(logp @ counted) / counted.sum().clamp(min=1)

    def set_prior(self, share_same: float) -> None:
        """Starts from the share of pairs that are the same, which small steps would take long to find."""
        if isinstance(bias := getattr(self, "bias", None), nn.Parameter) and bias.dim() == 1:
            nn.init.constant_(bias, math.log((share_same + EPSILON) / (1 - share_same + EPSILON)))


class LinearProbe(Probe):
    """wᵀx + wᵀy + b: whether patches lie on any object."""

    def __init__(self, num_layers: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_layers, dim))
        self.bias = nn.Parameter(torch.zeros(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """See `Probe`."""
        single = (x.flatten(1, 2) @ self.weight[:, :, None]).view(x.shape[:3])
        return single[:, :, :, None] + single[:, :, None, :] + self.bias[:, None, None, None]


class DiagonalProbe(Probe):
    """xᵀ diag(w) y + b."""

    def __init__(self, num_layers: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_layers, dim))
        self.bias = nn.Parameter(torch.zeros(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """See `Probe`."""
        return (x * self.weight[:, None, None]) @ x.mT + self.bias[:, None, None, None]


class QuadraticProbe(Probe):
    """xᵀ W₁ᵀ S W₁ y + b with W₁ of K rows and S = ±1, in turn: any symmetric form of up to K/2 signs of each kind."""

    signs: Tensor

    def __init__(self, num_layers: int, dim: int, rank: int = 100) -> None:
        """Starts at scores of about unit variance."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_layers, rank, dim) / (dim**0.5 * rank**0.25))
        self.bias = nn.Parameter(torch.zeros(num_layers))
        self.register_buffer("signs", (1.0 - 2.0 * (torch.arange(rank) % 2)).repeat(num_layers, 1))

    def forward(self, x: Tensor) -> Tensor:
        """See `Probe`."""
        projected = _project(x, self.weight)  # [L, B, N, K]
        return (projected * self.signs[:, None, None]) @ projected.mT + self.bias[:, None, None, None]


class FullQuadraticProbe(Probe):
    """xᵀ M y + b with any symmetric M, of full rank and any signs."""

    def __init__(self, num_layers: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_layers, dim, dim))
        self.bias = nn.Parameter(torch.zeros(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """See `Probe`."""
        symmetric = (self.weight + self.weight.mT) / 2
        return _project(x, symmetric) @ x.mT + self.bias[:, None, None, None]


class PointwiseProbe(Probe):
    """Says of each patch by itself what it is; the score is the log odds that two draws from what it says agree."""

    has_threshold: ClassVar[bool] = False

    def __init__(self, num_layers: int, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(num_layers, num_outputs, dim))
        self.bias = nn.Parameter(torch.zeros(num_layers, num_outputs))

    def logits(self, x: Tensor) -> Tensor:
        """What each patch is, `[L, B, N, C]`."""
        return _project(x, self.weight) + self.bias[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """See `Probe`."""
        probabilities = self.logits(x).softmax(-1)
        return torch.logit(probabilities @ probabilities.mT, eps=EPSILON)


class ClassProbe(PointwiseProbe):
    """Which class a patch's segment is of: same object, if the same class."""

    def loss(self, x: Tensor, labels: PatchLabels, pairs: PatchPairs) -> Tensor:
        """Cross-entropy of the classes."""
        return _cross_entropy(self.logits(x).log_softmax(-1), labels.classes.expand(len(x), -1, -1))


class IdentityProbe(PointwiseProbe):
    """Which of C queries a patch belongs to, where each segment of an image has a query of its own.

    Which one is found by Hungarian matching; segments beyond C get none and do not count.
    """

    def loss(self, x: Tensor, labels: PatchLabels, pairs: PatchPairs) -> Tensor:
        """Cross-entropy of the queries that segments are matched with."""
        logp = self.logits(x).log_softmax(-1)
        return _cross_entropy(logp, match_queries(logp.exp(), labels.instances))


class CosineProbe(Probe):
    """The cosine of x and y, which nothing is trained for."""

    has_threshold: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        """See `Probe`."""
        unit = F.normalize(x, dim=-1)
        return unit @ unit.mT


class DotProbe(Probe):
    """The product xᵀy / √D, which nothing is trained for."""

    has_threshold: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        """See `Probe`."""
        return (x @ x.mT) * x.shape[-1] ** -0.5


def match_queries(probabilities: Tensor, instances: Tensor) -> Tensor:
    """The query of each patch's segment, such that most patches are expected to be right.

    Args:
        probabilities: Of queries `[L, B, N, C]`.
        instances: Segments `[B, N]`, 0 for none.

    Returns:
        Queries `[L, B, N]`; -1 for patches of no segment, or of one without a query.
    """
    from scipy.optimize import linear_sum_assignment

    members = F.one_hot(instances).to(probabilities.dtype)  # [B, N, S + 1]
    gains = (members.mT @ probabilities.detach()).cpu().double().numpy()  # [L, B, S + 1, C]
    queries = torch.full(gains.shape[:3], -1)
    for image, present in enumerate(members.any(1).cpu()):
        ids = present.nonzero()[:, 0]
        ids = ids[ids > 0]
        for layer in range(len(gains)):
            rows, columns = linear_sum_assignment(gains[layer, image][ids.numpy()], maximize=True)
            queries[layer, image, ids[rows]] = torch.from_numpy(columns)
    return queries.to(instances.device).gather(2, instances.expand(len(probabilities), -1, -1))


def create_probe(
    name: str, num_layers: int, dim: int, *, num_classes: int, rank: int = 100, num_queries: int = 32
) -> Probe:
    """A probe by its name.

    Args:
        name: One of `PROBES`.
        num_layers: Layers that it is of.
        dim: Width of their tokens.
        num_classes: Of which the class probe has as many.
        rank: Of the quadratic probe.
        num_queries: Of the identity probe.

    Raises:
        ValueError: An unknown name, or a number below 1.
    """
    if min(rank, num_queries, num_classes) < 1:
        raise ValueError(f"rank {rank}, num_queries {num_queries} and num_classes {num_classes} must be at least 1")
    makers: dict[str, Callable[[], Probe]] = {
        "quadratic": lambda: QuadraticProbe(num_layers, dim, rank),
        "quadratic_full": lambda: FullQuadraticProbe(num_layers, dim),
        "diagonal": lambda: DiagonalProbe(num_layers, dim),
        "linear": lambda: LinearProbe(num_layers, dim),
        "class": lambda: ClassProbe(num_layers, dim, num_classes),
        "identity": lambda: IdentityProbe(num_layers, dim, num_queries),
        "cosine": CosineProbe,
        "dot": DotProbe,
    }
    if name not in makers:
        raise ValueError(f"no probe is named {name!r}; there are {', '.join(PROBES)}")
    return makers[name]()


def _project(x: Tensor, weight: Tensor) -> Tensor:
    """Tokens `[L, B, N, D]` by matrices `[L, K, D]`: `[L, B, N, K]`."""
    return torch.bmm(x.flatten(1, 2), weight.mT).unflatten(1, x.shape[1:3])


def _cross_entropy(logp: Tensor, targets: Tensor) -> Tensor:
    """Mean over the patches with a target (others have -1) of log-probabilities `[L, B, N, C]`: `[L]`."""
    known = targets >= 0
    taken = logp.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return -(taken * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)
