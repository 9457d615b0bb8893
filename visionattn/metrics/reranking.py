"""Re-ranking by k-reciprocal neighbours, on sparse lists of neighbours in place of matrices of all pairs.

Paper: "Re-ranking Person Re-identification with k-reciprocal Encoding" (Zhong et al., arXiv 1701.08398). Queries and
gallery are one set of N images. Distances are squared Euclidean ones of features of length 1, each row over its
largest. An image's neighbours that have it among theirs, expanded by neighbours of theirs (eq. 3 to 5), give it a
sparse vector of weights `exp(-distance)`; vectors of `k2` neighbours are averaged (eq. 11), and two images are as far
apart as their vectors' Jaccard distance (eq. 7 to 10), mixed with the first distance by `lambda_value` (eq. 12).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.metrics.retrieval import check_features

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CHUNK_BYTES = 256 << 20
"""Size of one chunk of distances."""

ROUNDING = 1e-6
"""Distances of features that are the same may come out as large."""

EXPANSION_ROWS = 1024
"""Images whose neighbours are expanded at once."""


def rerank(
    query_features: Tensor,
    gallery_features: Tensor,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Tensor]:
    """Yield re-ranked distances of queries to the gallery in chunks of rows, for `evaluate_distances`.

    Args:
        query_features: `[Q, D]`.
        gallery_features: `[G, D]`.
        k1: Neighbours that are looked at for reciprocity.
        k2: Neighbours whose vectors are averaged; 1 for none.
        lambda_value: Share of the first distance.
        progress: Called with the number of images that were just compared with all others; there are Q + G.

    Returns:
        Chunks `[n, G]` in float32, on the CPU.

    Raises:
        ValueError: A number is out of its range, or features cannot be compared.
    """
    check_features(query_features, gallery_features)
    number = len(query_features) + len(gallery_features)
    if not 1 <= k2 <= k1 + 1 or k1 < 1 or not 0 <= lambda_value <= 1:
        raise ValueError(
            f"re-ranking wants k1 >= 1, 1 <= k2 <= k1 + 1 and lambda_value in [0, 1]; got k1 {k1}, k2 {k2}, "
            f"lambda_value {lambda_value}"
        )
    features = F.normalize(torch.cat([query_features, gallery_features]).float(), dim=1)
    neighbours = find_neighbours(features, min(k1 + 1, number), progress)
    vectors = encode(features, neighbours, k1, k2)
    return _mixed_distances(features, neighbours, vectors, len(query_features), lambda_value)


@dataclass(frozen=True)
class Neighbours:
    """The nearest images of each of N.

    Attributes:
        index: Their numbers `[N, K]`, the image itself first, then the nearest.
        farthest: The largest distance of each to any `[N]`; infinity where all features are the same, so that shares of
            it are 0.
    """

    index: Tensor
    farthest: Tensor


def find_neighbours(features: Tensor, count: int, progress: Callable[[int], object] | None = None) -> Neighbours:
    """Return the `count` nearest neighbours of each of `features` `[N, D]`, which have length 1."""
    index, farthest = [], []
    step = max(1, CHUNK_BYTES // (4 * len(features)))
    for start, part in zip(range(0, len(features), step), features.split(step), strict=True):
        similarity = part @ features.T
        farthest.append(2 - 2 * similarity.amin(1))
        similarity.diagonal(start).fill_(torch.inf)  # of several images of the same features, each is its own nearest
        index.append(similarity.topk(count, sorted=True).indices)
        if progress is not None:
            progress(len(part))
    distance = torch.cat(farthest).cpu()
    return Neighbours(torch.cat(index).cpu(), distance.where(distance > ROUNDING, torch.inf))


def encode(features: Tensor, neighbours: Neighbours, k1: int, k2: int) -> "csr_array":
    """Return each image's sparse vector of weights over all images `[N, N]`; rows sum to 1."""
    import numpy as np
    from scipy.sparse import csr_array

    nearest = neighbours.index
    number = len(nearest)
    half = nearest[:, : round(k1 / 2) + 1]
    is_reciprocal, is_reciprocal_of_half = (_reciprocal(x) for x in (nearest, half))
    rows, columns = [], []
    for start in range(0, number, EXPANSION_ROWS):
        own, real = nearest[start : start + EXPANSION_ROWS], is_reciprocal[start : start + EXPANSION_ROWS]
        theirs, theirs_real = half[own], is_reciprocal_of_half[own]  # [n, K, H]: of each neighbour its own
        shared = ((theirs[..., None] == own[:, None, None, :]) & real[:, None, None, :]).any(-1) & theirs_real
        joins = real & (3 * shared.sum(-1) > 2 * theirs_real.sum(-1))
        members = torch.cat([own[:, :, None], theirs], 2)
        n, k, h = torch.cat([real[:, :, None], theirs_real & joins[..., None]], 2).nonzero(as_tuple=True)
        rows.append(n + start)
        columns.append(members[n, k, h])
    pairs = torch.unique(torch.cat(rows) * number + torch.cat(columns))  # an image may join by several neighbours
    row, column = pairs // number, pairs % number
    distance = torch.cat(
        [_pair_distances(features, r, c) for r, c in zip(row.split(1 << 16), column.split(1 << 16), strict=True)]
    )
    weight = torch.exp(-distance / neighbours.farthest[row]).double()
    weight /= torch.zeros(number, dtype=weight.dtype).index_add_(0, row, weight)[row]
    # Positions of 32 bits where they suffice: half the memory.
    vectors = csr_array(
        (weight.float().numpy(), (row.numpy().astype(np.int32), column.numpy().astype(np.int32))), (number, number)
    )
    if k2 == 1:
        return vectors
    some = nearest[:, :k2]
    ones = np.full(some.numel(), 1 / k2, np.float32)
    starts = np.arange(0, some.numel() + 1, some.shape[1])
    return csr_array((ones, some.flatten().numpy().astype(np.int32), starts), (number, number)) @ vectors


def _reciprocal(nearest: Tensor) -> Tensor:
    """Return a mask of the neighbours of each image that have it among theirs `[N, K]`."""
    found = []
    for start in range(0, len(nearest), EXPANSION_ROWS):
        own = nearest[start : start + EXPANSION_ROWS]
        number = torch.arange(start, start + len(own))
        found.append((nearest[own] == number[:, None, None]).any(-1))
    return torch.cat(found)


def _pair_distances(features: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return 2 - 2 * (features[row.to(features.device)] * features[column.to(features.device)]).sum(1).cpu()


def _mixed_distances(
    features: Tensor, neighbours: Neighbours, vectors: "csr_array", num_queries: int, lambda_value: float
) -> Iterator[Tensor]:
    """Yield chunks of the mixed Jaccard and original distance of queries to the gallery."""
    import numpy as np

    gallery = features[num_queries:]
    by_member = vectors[num_queries:].tocsc()  # of each image those of the gallery whose vectors hold it
    step = max(1, CHUNK_BYTES // (8 * len(gallery)))
    for start in range(0, num_queries, step):
        stop = min(start + step, num_queries)
        overlap = np.zeros((stop - start, len(gallery)), np.float32)
        for i in range(start, stop):
            own = slice(vectors.indptr[i], vectors.indptr[i + 1])
            for member, weight in zip(vectors.indices[own], vectors.data[own], strict=True):
                those = slice(by_member.indptr[member], by_member.indptr[member + 1])
                overlap[i - start, by_member.indices[those]] += np.minimum(by_member.data[those], weight)
        # The vectors sum to 1: where their minimum sums to m, their maximum sums to 2 - m.
        jaccard = torch.from_numpy(1 - overlap / (2 - overlap))
        first = (2 - 2 * (features[start:stop] @ gallery.T).cpu()) / neighbours.farthest[start:stop, None]
        yield jaccard.mul_(1 - lambda_value).add_(first.clamp_(min=0), alpha=lambda_value).clamp_(min=0)
