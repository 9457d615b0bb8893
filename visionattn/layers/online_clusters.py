"""Clusters of a layer's vectors, followed in training by online k-means."""

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from visionattn.layers.precision import AtLeastSingle, at_least_single
from visionattn_kernels.tracing import without_autocast


class OnlineClusters(AtLeastSingle):
    """Centroids per head, and the vectors that are the most similar to each.

    Similarity is the product x·μ. A centroid μ is the mean of the vectors that were the most similar to it, with an
    exponential moving average of their sum and number. The buffer `totals` holds both, `[heads, clusters, d + 1]`, in
    float32 at least: the sum, and the number as the last entry. All vectors of one step are assigned with the centroids
    from before that step: no output depends on other images, and activations that are recomputed in the backward pass
    are the same. So a training step has three parts:

    1. A forward pass in training mode measures what it has seen, and changes nothing.
    2. `auxiliary_losses()`, once after each forward pass and before its backward pass, returns the loss that pulls
       vectors to their centroids, and notes the measured sums for the update. Those of several passes add up, as
       gradients do.
    3. `update_buffers()`, once after the backward passes of a step, moves the centroids, by the sums over all processes
       where there are several.

    The tasks of this library do this. A loop of one's own that leaves out the last two trains with fixed centroids.
    """

    moving_averages = ("totals",)
    """Buffers that are moving averages already: an average of the weights copies them."""

    def __init__(
        self,
        num_heads: int,
        num_clusters: int,
        dim: int,
        decay: float = 0.999,
        eps: float = 1e-5,
        loss_weight: float = 1e-4,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Place centroids in random orthogonal directions around their mean, scaled as a LayerNorm scales.

        Top lists of such centroids overlap as little as those of trained ones. Each centroid counts as one vector.

        Args:
            num_heads: Heads, each with clusters of its own.
            num_clusters: Clusters per head.
            dim: Entries of a vector.
            decay: Of the moving averages, per update.
            eps: Laplace smoothing of the numbers of vectors.
            loss_weight: Weight of the loss.
            device: Device of the buffer.
            dtype: Type of the buffer, at least float32.
        """
        super().__init__()
        self.decay, self.eps, self.loss_weight = decay, eps, loss_weight
        start = torch.empty(num_heads, num_clusters, dim, device=device, dtype=at_least_single(dtype))
        for directions in start:
            nn.init.orthogonal_(directions)
        start = F.layer_norm(start - start.mean(1, keepdim=True), (dim,))
        self.totals: Tensor
        self.register_buffer("totals", torch.cat([start, torch.ones_like(start[..., :1])], -1))
        self._latest: tuple[Tensor, Tensor] | None = None  # loss and sums of the latest forward pass
        self._noted: Tensor | None = None  # sums for the next update
        self._coverage: Tensor | None = None

    @property
    def centroids(self) -> Tensor:
        """Centroids `[heads, clusters, d]`."""
        sums, counts = self.totals[..., :-1], self.totals[..., -1:]
        total = counts.sum(1, keepdim=True)
        return sums * (total + counts.shape[1] * self.eps) / ((counts + self.eps) * total)

    def forward(self, x: Tensor, size: int) -> Tensor:
        """Return the indices `[B, heads, clusters, size]` of the vectors that are the most similar to each centroid.

        Args:
            x: Vectors `[B, heads, N, d]`.
            size: Vectors per cluster. A vector may be in several clusters, or in none. Of equal ones, the first is in.
        """
        with without_autocast(x.device):
            x = x.to(self.totals.dtype)
            with torch.no_grad():
                similarity = x @ self.centroids.mT  # [B, heads, N, clusters]
                members = similarity.mT.sort(descending=True, stable=True).indices[..., :size]
            if self.training:
                self._measure(x, similarity.argmax(-1), members)
        return members

    def _measure(self, x: Tensor, nearest: Tensor, members: Tensor) -> None:
        centroids = self.centroids
        assigned = F.one_hot(nearest, centroids.shape[1]).to(x.dtype)  # [B, heads, N, clusters]
        with torch.no_grad():
            sums = torch.einsum("bhnc,bhnd->hcd", assigned, F.pad(x, (0, 1), value=1.0))
            seen = torch.zeros_like(x[..., 0]).scatter(2, members.flatten(2), 1.0)
        self._coverage = seen.mean()
        self._latest = self.loss_weight * F.mse_loss(x, assigned @ centroids), sums
        if x.requires_grad and not torch.compiler.is_compiling():
            # A recomputation in the backward pass measures again; what it leaves would keep its activations.
            x.register_hook(self._forget)

    def _forget(self, _: Tensor) -> None:
        self._latest = None

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Return the loss of the latest forward pass, and note its sums for the update.

        The loss is `commitment`, the mean over entries of (x − μ)², with μ as a constant, times `loss_weight`.
        """
        if self._latest is None:
            return {}
        (loss, sums), self._latest = self._latest, None
        self._noted = sums if self._noted is None else self._noted + sums
        return {"commitment": loss}

    @torch.no_grad()
    def update_buffers(self) -> None:
        """Move the centroids by the sums noted since the last update; all processes must call it."""
        if self._noted is None:
            return
        sums, self._noted = self._noted, None
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        self.totals.lerp_(sums, 1 - self.decay)

    def measurements(self) -> dict[str, Tensor]:
        """Return `routing_coverage`, the share of the vectors of the latest forward pass that are in any cluster."""
        return {} if self._coverage is None else {"routing_coverage": self._coverage}

    def __getstate__(self) -> dict[str, object]:
        """Leave out the latest forward pass, whose graph cannot be copied."""
        return {**self.__dict__, "_latest": None}
