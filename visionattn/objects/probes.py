"""Probes that predict from the embeddings x, y of two patches whether they lie on one object, for L layers at once.

The probes are those of "Does Object Binding Naturally Emerge in Large Pretrained Vision Transformers?"
(https://arxiv.org/abs/2510.24709). Parameters are stacked over the layers, and matrix products score all pairs of an
image at once. All probes are symmetric in x and y.

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
from visionattn.suggestions import suggest

PROBES = ("quadratic", "quadratic_full", "diagonal", "linear", "class", "identity", "cosine", "dot")
"""Names that `create_probe` takes."""

EPSILON = 1e-6
"""Added to variances; also the smallest probability whose log odds are taken."""


class RunningNorm(nn.Module):
    """Normalise tokens by layer norm, then each channel to mean 0 and variance 1.

    The layer norm has no parameters; it removes the length of tokens, which differs by orders of magnitude within some
    backbones. The mean and variance of a channel cover all training batches so far, in training and in evaluation; with
    those of the batch, a probe would see an image relative to its batch. Up to token lengths, a probe of normalised
    tokens is a probe of the raw tokens.
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
        """Normalise tokens `[L, B, N, D]`; in training mode, first add them to the statistics."""
        normed = F.layer_norm(tokens, tokens.shape[-1:])
        if self.training:
            self._update(normed.flatten(1, 2))
        scale = (self.variance + EPSILON).rsqrt()
        return normed.sub_(self.mean[:, None, None]).mul_(scale[:, None, None])

    def to_tokens(self, weight: Tensor) -> Tensor:
        """Convert directions `[L, K, D]` in the space of normalised tokens to the space of raw tokens.

        The product of `weight` with a normalised token equals the product of the result with the raw token, divided by
        the token's standard deviation, up to a constant.
        """
        weight = weight * (self.variance + EPSILON).rsqrt()[:, None]
        return weight - weight.mean(-1, keepdim=True)

    def _update(self, rows: Tensor) -> None:
        """Merge in the means and variances `[L, D]` of rows `[L, M, D]` (Chan et al., 1979)."""
        origin = self.mean if self.count.any() else rows[:, 0]
        shifted = rows - origin[:, None]  # keeps the sums small, so that the difference below loses little precision
        offset = shifted.mean(1)
        variance = (shifted.square_().mean(1) - offset**2).clamp(min=0)
        total = self.count + rows.shape[1]
        share = rows.shape[1] / total
        delta = origin + offset - self.mean
        self.variance.mul_(1 - share).add_(variance * share + delta**2 * share * (1 - share))
        self.mean.add_(delta * share)
        self.count.copy_(total)


class PairProbe(nn.Module, ABC):
    """Base class: score all pairs of tokens, with higher scores for pairs that more likely lie on the same object.

    Attributes:
        has_threshold: Whether scores are logits, with a threshold of 0; otherwise the threshold must be fitted.
    """

    has_threshold: ClassVar[bool] = True

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return scores `[L, B, N, N]` for all pairs of normalised tokens `[L, B, N, D]`."""

    def loss(self, x: Tensor, labels: PatchLabels, pairs: PatchPairs) -> Tensor:
        """Return the loss of each layer `[L]`: by default the mean binary cross-entropy of the counted pairs."""
        sign = 2.0 * pairs.same.to(x.dtype) - 1.0
        right = torch.sigmoid(self(x) * sign).flatten(1)  # [L, B·N·N]
        counted = pairs.counted.flatten().to(x.dtype)
        # Logarithm of a sigmoid; on CPUs, logsigmoid and softplus take ten times as long.
        logp = right.clamp(min=torch.finfo(x.dtype).tiny).log()
        return -(logp @ counted) / counted.sum().clamp(min=1)

    def set_prior(self, share_same: float) -> None:
        """Set a single bias to the log odds of the share of same pairs, which small steps would reach late."""
        if isinstance(bias := getattr(self, "bias", None), nn.Parameter) and bias.dim() == 1:
            nn.init.constant_(bias, math.log((share_same + EPSILON) / (1 - share_same + EPSILON)))


class VectorProbe(PairProbe):
    """Base class: a vector of weights and a bias for each layer."""

    def __init__(self, num_layers: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_layers, dim))
        self.bias = nn.Parameter(torch.zeros(num_layers))


class LinearProbe(VectorProbe):
    """Score wᵀx + wᵀy + b, which can only tell whether the patches lie on any object."""

    def forward(self, x: Tensor) -> Tensor:
        """Score all pairs of tokens; see `PairProbe.forward`."""
        single = (x.flatten(1, 2) @ self.weight[:, :, None]).view(x.shape[:3])
        return single[:, :, :, None] + single[:, :, None, :] + self.bias[:, None, None, None]


class DiagonalProbe(VectorProbe):
    """Score xᵀ diag(w) y + b."""

    def forward(self, x: Tensor) -> Tensor:
        """Score all pairs of tokens; see `PairProbe.forward`."""
        return (x * self.weight[:, None, None]) @ x.mT + self.bias[:, None, None, None]


class QuadraticProbe(PairProbe):
    """Score xᵀ W₁ᵀ S W₁ y + b with W₁ `[K, D]` and S = diag(1, -1, 1, …): at most K/2 eigenvalues of each sign.

    With the random weights that it starts from, the score is a random projection of xᵀy. So the probe begins as the
    dot product and not as noise, which a training on few images would not remove.
    """

    signs: Tensor

    def __init__(self, num_layers: int, dim: int, rank: int = 100) -> None:
        """Initialise the weights so that scores have about unit variance; those of negative sign are near zero."""
        super().__init__()
        signs = 1.0 - 2.0 * (torch.arange(rank) % 2)
        scale = torch.where(signs > 0, 1.0, 0.1) / (dim**0.5 * rank**0.25)
        self.weight = nn.Parameter(torch.randn(num_layers, rank, dim) * scale[:, None])
        self.bias = nn.Parameter(torch.zeros(num_layers))
        self.register_buffer("signs", signs.repeat(num_layers, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Score all pairs of tokens; see `PairProbe.forward`."""
        projected = _project(x, self.weight)  # [L, B, N, K]
        return (projected * self.signs[:, None, None]) @ projected.mT + self.bias[:, None, None, None]


class FullQuadraticProbe(PairProbe):
    """Score xᵀ M y + b, where M is any symmetric matrix."""

    def __init__(self, num_layers: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_layers, dim, dim))
        self.bias = nn.Parameter(torch.zeros(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """Score all pairs of tokens; see `PairProbe.forward`."""
        symmetric = (self.weight + self.weight.mT) / 2
        return _project(x, symmetric) @ x.mT + self.bias[:, None, None, None]


class PointwiseProbe(PairProbe):
    """Base class: classify each patch on its own, and score a pair by the log odds that two draws agree."""

    has_threshold: ClassVar[bool] = False

    def __init__(self, num_layers: int, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(num_layers, num_outputs, dim))
        self.bias = nn.Parameter(torch.zeros(num_layers, num_outputs))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of each patch, `[L, B, N, C]`."""
        return _project(x, self.weight) + self.bias[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Score all pairs of tokens; see `PairProbe.forward`."""
        probabilities = self.logits(x).softmax(-1)
        return torch.logit(probabilities @ probabilities.mT, eps=EPSILON)


class ClassProbe(PointwiseProbe):
    """Predict the class of a patch's segment, and take two patches of one class for the same object."""

    def loss(self, x: Tensor, labels: PatchLabels, pairs: PatchPairs) -> Tensor:
        """Return the cross-entropy of the classes."""
        return _cross_entropy(self.logits(x).log_softmax(-1), labels.classes.expand(len(x), -1, -1))


class IdentityProbe(PointwiseProbe):
    """Predict which of C queries a patch belongs to; each segment of an image has its own query.

    Hungarian matching assigns queries to segments. Segments beyond C get no query and do not count.
    """

    def loss(self, x: Tensor, labels: PatchLabels, pairs: PatchPairs) -> Tensor:
        """Return the cross-entropy of the queries that the segments are matched with."""
        logp = self.logits(x).log_softmax(-1)
        return _cross_entropy(logp, match_queries(logp.exp(), labels.instances))


class CosineProbe(PairProbe):
    """Score the cosine of x and y, without trained parameters."""

    has_threshold: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        """Score all pairs of tokens; see `PairProbe.forward`."""
        unit = F.normalize(x, dim=-1)
        return unit @ unit.mT


class DotProbe(PairProbe):
    """Score xᵀy / √D, without trained parameters."""

    has_threshold: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        """Score all pairs of tokens; see `PairProbe.forward`."""
        return (x @ x.mT) * x.shape[-1] ** -0.5


def match_queries(probabilities: Tensor, instances: Tensor) -> Tensor:
    """Match segments with queries, so that the expected number of correct patches is largest.

    Probabilities are `[L, B, N, C]`, and segments of patches `[B, N]`, 0 for none.

    Returns:
        Query of each patch's segment `[L, B, N]`; -1 if the patch has no segment, or the segment no query.
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
) -> PairProbe:
    """Create a probe, one of `PROBES`, on `num_layers` layers at once, for tokens of a width `dim`.

    The class probe has `num_classes` outputs, the identity probe `num_queries`; `rank` is that of the quadratic probe.

    Raises:
        ValueError: The name is unknown, or a number is below 1.
    """
    if min(rank, num_queries, num_classes) < 1:
        raise ValueError(f"rank {rank}, num_queries {num_queries} and num_classes {num_classes} must be at least 1")
    makers: dict[str, Callable[[], PairProbe]] = {
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
        hint = suggest(name, PROBES) or f"; there are {', '.join(PROBES)}"
        raise ValueError(f"no probe is named {name!r}{hint}")
    return makers[name]()


def _project(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply tokens `[L, B, N, D]` by matrices `[L, K, D]`: `[L, B, N, K]`."""
    return torch.bmm(x.flatten(1, 2), weight.mT).unflatten(1, x.shape[1:3])


def _cross_entropy(logp: Tensor, targets: Tensor) -> Tensor:
    """Average log-probabilities `[L, B, N, C]` over patches with a target (others have -1): `[L]`."""
    known = targets >= 0
    taken = logp.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return -(taken * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)
