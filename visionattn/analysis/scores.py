"""Scores of attention heads that are read from their weights alone.

    layers = head_layers(model)
    scores = measure_scores(model, layers, batches)
    scores[3, 1]["distance"]

Let a_ij be the weight of query i for key j in one image, p the positions in patches, and W = 3. Queries are patches,
never prefix tokens. Scores are means over images and queries:

- `distance`: Σ_j a_ij ‖p_i - p_j‖ over patches j, whose weights are divided by their sum.
- `distance_clipped`: the same with min(‖p_i - p_j‖, W).
- `influence`: Σ_i≠j a_ij, the attention that a patch j receives from other patches; mean over patches.
- `influence_peak`: the largest of these sums over the patches of an image, divided by their mean.
- `entropy`: -Σ_j a_ij ln a_ij in nats, over patches and prefix tokens.
- `prefix_mass`: Σ_j a_ij over prefix tokens; None without such tokens.
- `positional`: share of the variance of a_ij that the mean over images explains. Variance is taken over images and the
  keys that a query sees, about the mean weight of a row. 1: all images have the same weights. None: weights do not
  vary, beyond rounding.

Distances and influence are those of arXiv 2510.13554 for sequences (WAAD: backward distance, clipped; FAI: attention
from later tokens), taken to two dimensions, which have no order. The others are ours.

Negative weights, which local linear attention has, count as 0 in distances and entropy. So do weights of positions
beyond the map, which padded windows have; the rest is then divided by its sum.

On maps of more than 1,024 queries, 256 of them are read, evenly spaced on both axes. `influence` then takes what all
queries give, less the mean weight that these 256 have for themselves; `influence_peak` is None.

Shapes: B images, h heads, Q queries, K keys, E prefix tokens.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from operator import length_hint

import torch
from torch import Tensor, nn

from visionattn.analysis.head_images import HeadBatch
from visionattn.analysis.heads import HeadLayer, HeadValues
from visionattn.analysis.recorded import Query, RecordedAttention
from visionattn.errors import UserError
from visionattn.evaluation.drawing import spread
from visionattn.progress import ShowProgress, no_progress

MAX_QUERIES = 1024
"""Queries of the largest map of which all are read."""

NUM_SAMPLED = 256
"""Queries that are read of larger maps."""

WEIGHTS_AT_ONCE = 2**18
"""Weights that are read at once, if that is not less than one image."""

REACH = 3.0
"""W, the largest distance in `distance_clipped`."""

ROUNDING = 1e-6
"""Relative deviation that is no variation of weights."""


def measure_scores(
    network: nn.Module,
    layers: Sequence[HeadLayer],
    batches: Iterable[HeadBatch],
    *,
    progress: ShowProgress = no_progress,
) -> HeadValues:
    """Return the scores of all heads of layers, see the module; none for layers that the network does not run.

    Two runs on the same batches return the same values, bit for bit, on CPUs. Memory does not grow with the images: one
    layer's weights of a batch, and for each layer h + 4 tables `[Q, K]`, 67 MB for 12 heads and 32 × 32 patches.

    Args:
        network: The network, in evaluation mode, or a classifier around it.
        layers: Layers of the network, see `head_layers`.
        batches: The images.
        progress: Called at the start, to show the progress.

    Raises:
        UserError: There are no images.
    """
    scores = {layer: _Scores(layer.num_heads) for layer in layers}
    with torch.no_grad(), ExitStack() as stack, progress("scores of heads", "batches") as report:
        for layer in layers:
            layer.attention.watch(scores[layer].update, stack)
        number = 0
        for number, batch in enumerate(batches, 1):
            network(batch.image)
            report(number, length_hint(batches) or None)
    if not number:
        raise UserError("there are no images to measure heads on")
    return {head: values for layer in layers for head, values in zip(layer.heads, scores[layer].result(), strict=True)}


def choose_queries(recorded: RecordedAttention) -> list[Query]:
    """Return all queries of a map, or `NUM_SAMPLED` of them, evenly spaced, if there are more than `MAX_QUERIES`."""
    height, width = recorded.num_queries
    if height * width <= MAX_QUERIES:
        return recorded.queries
    columns = spread(width, max(round(NUM_SAMPLED**0.5), NUM_SAMPLED // height))
    return [(row, column) for row in spread(height, NUM_SAMPLED // len(columns)) for column in columns]


def at_least_float32(weights: Tensor) -> Tensor:
    """Return weights in float32, or as they are in a wider type."""
    return weights.to(torch.promote_types(weights.dtype, torch.float32))


def num_images_at_once(num_weights: int) -> int:
    """Return the number of images, at least 1, whose weights stay in the cache of a core; `num_weights` has one."""
    return max(1, WEIGHTS_AT_ONCE // num_weights)


class _Scores:
    """Sums of the scores of a layer's heads over images and queries."""

    def __init__(self, num_heads: int) -> None:
        self.num_heads, self.num_images = num_heads, 0
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(num_heads, dtype=torch.float64))

    def update(self, recorded: RecordedAttention) -> None:
        """Add the scores of a batch."""
        if not self.num_images:
            self._prepare(recorded)
        for part in recorded.split(num_images_at_once(self.num_heads * self.seen.numel())):
            self._add_images(part)

    def _add_images(self, recorded: RecordedAttention) -> None:
        """Add the scores of some images."""
        own = self._add_rows(recorded)
        received = recorded.received().to(own).flatten(2)  # [B, h, K]
        from_others = received.sum(-1) - own.mean(-1) * self.num_queries
        self._add("influence", from_others / received.shape[-1])
        if self.reads_all:
            received[..., self.keys.to(received.device)] -= own
            mean = received.mean(-1)
            peaked = mean > ROUNDING
            self._add("peaked", peaked)
            self._add("influence_peak", (received.amax(-1) / mean).where(peaked, 0))
        self.num_images += len(own)

    def result(self) -> list[dict[str, float | None]]:
        """Return the scores of each head."""
        if not self.num_images:
            return [{} for _ in range(self.num_heads)]
        sums, count = self.sums, self.num_images * len(self.queries)
        found = {
            **{name: sums[name] / count for name in ("distance", "distance_clipped")},
            "influence": sums["influence"] / self.num_images,
            "influence_peak": sums["influence_peak"] / sums["peaked"] if self.reads_all else self.nothing,
            "entropy": sums["entropy"] / count,
            "prefix_mass": sums["prefix_mass"] / count if self.num_prefix_tokens else self.nothing,
            "positional": self._explained(),
        }
        rows = zip(*(values.tolist() for values in found.values()), strict=True)
        return [{name: None if x != x else x for name, x in zip(found, row, strict=True)} for row in rows]

    def _prepare(self, recorded: RecordedAttention) -> None:
        self.queries = choose_queries(recorded)
        rows, columns = recorded.num_queries
        self.num_queries, self.reads_all = rows * columns, len(self.queries) == rows * columns
        self.keys = recorded.keys_of(self.queries)
        prefix = at_least_float32(recorded.prefix(self.queries[:1]))
        self.num_prefix_tokens = prefix.shape[-1]
        self.seen = recorded.seen(self.queries).flatten(1).cpu()
        places = torch.cartesian_prod(*map(torch.arange, recorded.size)).double()  # [K, 2]
        distances = torch.cdist(places[self.keys], places, compute_mode="donot_use_mm_for_euclid_dist")
        measures = torch.stack([torch.ones_like(distances), distances, distances.clamp(max=REACH)], -1)
        self.measures = measures.to(prefix)  # [Q, K, 3]
        self.uniform = (self.seen / (self.seen.sum(-1, keepdim=True) + self.num_prefix_tokens)).to(prefix)  # [Q, K]
        self.deviations = prefix.new_zeros(self.num_heads, *self.seen.shape)  # from uniform, summed over images

    def _add(self, name: str, values: Tensor) -> None:
        """Add values `[B, h, ...]`."""
        self.sums[name] = self.sums[name] + values.double().transpose(0, 1).flatten(1).sum(1).cpu()

    def _add_rows(self, recorded: RecordedAttention) -> Tensor:
        """Add the scores of queries, and return their weights for themselves, `[B, h, Q]`."""
        weights = at_least_float32(recorded.rows(self.queries)).flatten(3)  # [B, h, Q, K]
        prefix = recorded.prefix(self.queries).to(weights)  # [B, h, Q, E]
        of_prefix = prefix.sum(-1)
        self._add("prefix_mass", of_prefix)

        deviations = weights - self.uniform
        self._add("squares", torch.linalg.vecdot(deviations, deviations))
        self.deviations += deviations.sum(0)

        positive = weights.clamp(min=0)
        of_patches, distance, clipped = torch.einsum("bhqk,qkm->bhqm", positive, self.measures).unbind(-1)
        self._add("distance", _divide(distance, of_patches))
        self._add("distance_clipped", _divide(clipped, of_patches))
        total, logs = of_patches + of_prefix, _sum_logs(positive) + _sum_logs(prefix)
        self._add("entropy", total.log() - logs / total)
        keys = self.keys.to(weights.device)
        return weights.gather(-1, keys[:, None].expand(*weights.shape[:-1], 1))[..., 0]

    def _explained(self) -> Tensor:
        """Return the share of the variance of weights that their mean over images explains, `[h]`.

        Sums are of deviations from uniform attention, which lose less to rounding than those of weights.
        """
        sums, num_seen = self.deviations.cpu().double(), self.seen.sum(-1)
        of_rows = (sums.sum(-1).square() / num_seen).sum(-1) / self.num_images
        total = self.sums["squares"] - of_rows
        explained = sums.square().sum((1, 2)) / self.num_images - of_rows
        smallest = self.num_images * (ROUNDING * self.uniform).square().sum()
        return (explained / total).clamp(max=1).where(total > smallest, torch.nan)

    @property
    def nothing(self) -> Tensor:
        """Return the score that no head has."""
        return torch.full_like(self.sums["distance"], torch.nan)


def _divide(sums: Tensor, masses: Tensor) -> Tensor:
    """Divide, where attention to patches underflows to 0, by a number that leaves 0."""
    return sums / masses.clamp(min=torch.finfo(masses.dtype).tiny)


def _sum_logs(weights: Tensor) -> Tensor:
    """Return Σ a ln a over the last axis."""
    return torch.linalg.vecdot(weights, weights.clamp(min=torch.finfo(weights.dtype).tiny).log_())
