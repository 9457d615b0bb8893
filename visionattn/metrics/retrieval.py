"""Measures of retrieval by appearance (person and vehicle re-identification): mAP, mINP and CMC.

A query looks for images of its identity in a gallery. Gallery images of the same identity by the same camera are
left out for it; a query that has no match then is skipped and counted. Average precision is the mean, over a query's
matches, of the share of matches among all images up to each (not the trapezoid of Market-1501's first code). INP is
the number of matches over the rank of the last one (Ye et al., "Deep Learning for Person Re-identification", arXiv
2001.04193). Images at equal distance are ranked in the gallery's order; distances are compared in float32.

Nothing is sorted but a query's matches: the rank of a match is the number of images that are nearer, which one pass
over a chunk of distances counts for all matches.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 256 << 20
"""Size of one chunk of keys, each a number and a gallery position of eight bytes together."""

FAR = torch.iinfo(torch.int64).max

Metric = Literal["cosine", "euclidean"]


def evaluate_retrieval(
    query_features: Tensor,
    gallery_features: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cams: Tensor | None = None,
    gallery_cams: Tensor | None = None,
    *,
    metric: Metric = "cosine",
    max_rank: int = 50,
    device: torch.device | str | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Rank the gallery for every query and average.

    Args:
        query_features: `[Q, D]`.
        gallery_features: `[G, D]`.
        query_ids: Identities `[Q]`, integers.
        gallery_ids: Identities `[G]`.
        query_cams: Cameras `[Q]`; without cameras no gallery image is left out.
        gallery_cams: Cameras `[G]`.
        metric: Distance of features: "cosine", or "euclidean".
        max_rank: Length of the CMC.
        device: Where distances are computed; that of the query features by default.
        progress: Called with the number of queries that were just done.

    Returns:
        `mAP`, `mINP` and `cmc` (a list, rank 1 first) as fractions, `num_valid_queries`, `num_skipped_queries`.

    Raises:
        ValueError: Tensors do not fit each other, hold NaN, or no query has a match.
    """
    device = torch.device(device if device is not None else query_features.device)
    check_features(query_features, gallery_features)
    query, gallery = (prepare(x, metric, device) for x in (query_features, gallery_features))
    step = max(1, CHUNK_BYTES // (8 * len(gallery)))
    chunks = (distances(query[i : i + step], gallery, metric) for i in range(0, len(query), step))
    return evaluate_distances(
        chunks, query_ids, gallery_ids, query_cams, gallery_cams, max_rank=max_rank, progress=progress
    )


def evaluate_distances(
    chunks: Tensor | Iterable[Tensor],
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cams: Tensor | None = None,
    gallery_cams: Tensor | None = None,
    *,
    max_rank: int = 50,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Evaluate distances `[Q, G]`, such as re-ranked ones: none negative, whole or in chunks of rows.

    Chunks may be overwritten. Other arguments, results and errors are those of `evaluate_retrieval`.
    """
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1; got {max_rank}")
    if isinstance(chunks, Tensor):
        chunks = (chunks.clone(),)
    matches = Matches(query_ids, gallery_ids, query_cams, gallery_cams)
    found = Sums(torch.zeros(max_rank, dtype=torch.float64))
    start = 0
    for chunk in chunks:
        stop = start + len(chunk)
        if chunk.shape[1] != matches.num_gallery or stop > matches.num_queries:
            raise ValueError(
                f"distances must be [{matches.num_queries}, {matches.num_gallery}]; got rows {start} to {stop} of "
                f"{chunk.shape[1]} columns"
            )
        found.add(rank_matches(chunk, *matches.of(start, stop, chunk.device)))
        if progress is not None:
            progress(len(chunk))
        start = stop
    if start != matches.num_queries:
        raise ValueError(f"distances must have a row for each of {matches.num_queries} queries; got {start}")
    return found.results()


def check_features(query: Tensor, gallery: Tensor) -> None:
    """Raise a ValueError unless features are matrices of one width that are not empty and hold no NaN or infinity."""
    if query.dim() != 2 or gallery.dim() != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"features must be [Q, D] and [G, D]; got {list(query.shape)} and {list(gallery.shape)}")
    for name, features in (("query", query), ("gallery", gallery)):
        if not len(features):
            raise ValueError(f"there are no {name} features")
        bad = sum(int((~part.isfinite()).any(1).sum()) for part in features.split(4096))
        if bad:
            raise ValueError(f"{bad} of {len(features)} {name} features hold NaN or infinity: the model diverged")


def prepare(features: Tensor, metric: Metric, device: torch.device) -> Tensor:
    """Return features in float32 or wider on a device, of length 1 for cosine distances."""
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be 'cosine' or 'euclidean'; got {metric!r}")
    features = features.to(device)
    features = features if features.dtype in (torch.float32, torch.float64) else features.float()
    return F.normalize(features, dim=1) if metric == "cosine" else features


def distances(query: Tensor, gallery: Tensor, metric: Metric) -> Tensor:
    """Return distances `[Q, G]` of prepared features: `1 - cos`, or the squared Euclidean distance."""
    if metric == "cosine":
        return torch.addmm(query.new_ones(()), query, gallery.T, alpha=-1)
    squares = gallery.square().sum(1)
    return torch.addmm(squares, query, gallery.T, alpha=-2).add_(query.square().sum(1)[:, None])


class Matches:
    """Gallery images with the identity of each query, and those that are left out for it."""

    def __init__(
        self, query_ids: Tensor, gallery_ids: Tensor, query_cams: Tensor | None, gallery_cams: Tensor | None
    ) -> None:
        """Sort the gallery by identity; raise a ValueError unless identities and cameras fit each other."""
        if (query_cams is None) != (gallery_cams is None):
            raise ValueError("query_cams and gallery_cams must be given together")
        for side, ids, cams in (("query", query_ids, query_cams), ("gallery", gallery_ids, gallery_cams)):
            if ids.dim() != 1 or ids.is_floating_point():
                raise ValueError(f"{side}_ids must be integers in one dimension; got {ids.dtype} {list(ids.shape)}")
            if cams is not None and cams.shape != ids.shape:
                raise ValueError(f"{side}_cams must be as many as {side}_ids, {len(ids)}; got {list(cams.shape)}")
        self.num_queries, self.num_gallery = len(query_ids), len(gallery_ids)
        sorted_ids, self.order = gallery_ids.cpu().sort(stable=True)
        wanted = query_ids.cpu().to(sorted_ids.dtype)
        self.first, self.last = (torch.searchsorted(sorted_ids, wanted, right=right) for right in (False, True))
        self.query_cams = None if query_cams is None else query_cams.cpu()
        self.gallery_cams = None if gallery_cams is None else gallery_cams.cpu()

    def of(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return for queries `start` to `stop` gallery positions `[n, M]`, a mask of matches and one of exclusions."""
        first, last = self.first[start:stop, None], self.last[start:stop, None]
        offset = torch.arange(int((last - first).max()) if len(first) else 0)
        exists = offset < last - first
        position = self.order[(first + offset).clamp(max=self.num_gallery - 1)]
        if self.query_cams is None or self.gallery_cams is None:
            same_camera = torch.zeros_like(exists)
        else:
            same_camera = self.gallery_cams[position] == self.query_cams[start:stop, None]
        return position.to(device), (exists & ~same_camera).to(device), (exists & same_camera).to(device)


def rank_matches(chunk: Tensor, position: Tensor, is_match: Tensor, is_out: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ranks of the matches of n queries from 0, in order, `[n, M]`, and the number of matches `[n]`.

    Ranks beyond that number mean nothing. `chunk` are distances `[n, G]`, `position` gallery positions of each query's
    identity `[n, M]`, of which `is_match` are to be found and `is_out` left out.
    """
    keys = order_keys(chunk)
    rows = torch.arange(len(chunk), device=chunk.device)[:, None].expand_as(position)
    keys[rows[is_out], position[is_out]] = FAR
    bounds = keys.gather(1, position).masked_fill(~is_match, FAR).sort(1).values
    # Place j of an image: as many matches are no farther than it. It is nearer than all matches from j on.
    place = torch.searchsorted(bounds, keys, right=True, out_int32=True)
    width = position.shape[1] + 1
    place += (torch.arange(len(chunk), device=chunk.device, dtype=torch.int32) * width)[:, None]
    counts = place.flatten().bincount(minlength=len(chunk) * width).view(-1, width)
    return counts.cumsum(1)[:, :-1], is_match.sum(1)


def order_keys(chunk: Tensor) -> Tensor:
    """Return unique integers in the order of distances: their bits, then the position in the gallery."""
    # The bits of floats that are not negative are ordered as they are; adding zero rids -0.0 of its sign.
    bits = chunk.float().clamp_(min=0).add_(0.0).view(torch.int32)
    return bits.long().bitwise_left_shift_(32).bitwise_or_(torch.arange(chunk.shape[1], device=chunk.device))


@dataclass
class Sums:
    """Sums over queries."""

    cmc: Tensor
    average_precision: float = 0.0
    inverse_penalty: float = 0.0
    valid: int = 0
    skipped: int = field(default=0)

    def add(self, ranked: tuple[Tensor, Tensor]) -> None:
        """Add a chunk's ranks and numbers of matches."""
        ranks, number = (x.cpu() for x in ranked)
        valid = number > 0
        self.skipped += int((~valid).sum())
        ranks, number = ranks[valid], number[valid]
        if not len(ranks):
            return
        order = torch.arange(ranks.shape[1])
        real = order < number[:, None]
        precision = ((order + 1) / (ranks + 1).double()).masked_fill(~real, 0)
        self.average_precision += float((precision.sum(1) / number).sum())
        last = ranks.gather(1, number[:, None] - 1)[:, 0]
        self.inverse_penalty += float((number / (last + 1).double()).sum())
        first = ranks[:, 0]
        hits = first[first < len(self.cmc)].bincount(minlength=len(self.cmc))
        self.cmc += hits.cumsum(0)
        self.valid += len(ranks)

    def results(self) -> dict[str, Any]:
        """Return the averages; raise a ValueError if no query has a match."""
        if not self.valid:
            raise ValueError(
                f"none of {self.skipped} queries has a match in the gallery: no image there has its identity and "
                "another camera"
            )
        return {
            "mAP": self.average_precision / self.valid,
            "mINP": self.inverse_penalty / self.valid,
            "cmc": (self.cmc / self.valid).tolist(),
            "num_valid_queries": self.valid,
            "num_skipped_queries": self.skipped,
        }


def evaluate_vehicleid(
    features: Tensor,
    ids: Tensor,
    *,
    trials: int = 10,
    seed: int = 0,
    metric: Metric = "cosine",
    max_rank: int = 50,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Evaluate by the protocol of VehicleID: a random image per identity is the gallery, the others are queries.

    Features are `[N, D]`, identities `[N]`. Results are means over `trials` random galleries, which `seed` determines.
    Other arguments are those of `evaluate_retrieval`.

    Returns:
        As `evaluate_retrieval`, with `num_trials`; numbers of queries are those of one trial.

    Raises:
        ValueError: `trials` is below 1, ids are not as many as features, or an error of `evaluate_retrieval`.
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1; got {trials}")
    if len(ids) != len(features):
        raise ValueError(f"ids must be as many as features, {len(features)}; got {len(ids)}")
    results = []
    for in_gallery in _galleries(ids.cpu(), trials, seed):
        parts = [values[chosen] for values in (features, ids) for chosen in (~in_gallery, in_gallery)]
        results.append(evaluate_retrieval(*parts, metric=metric, max_rank=max_rank, device=device))
    mean = {name: sum(r[name] for r in results) / trials for name in ("mAP", "mINP")}
    cmc = torch.tensor([r["cmc"] for r in results]).mean(0).tolist()
    return {**results[0], **mean, "cmc": cmc, "num_trials": trials}


def _galleries(ids: Tensor, trials: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(trials):
        shuffled = torch.randperm(len(ids), generator=generator)
        order = shuffled[ids[shuffled].sort(stable=True).indices]
        first = torch.ones(len(ids), dtype=torch.bool)
        first[1:] = ids[order][1:] != ids[order][:-1]
        in_gallery = torch.zeros(len(ids), dtype=torch.bool)
        in_gallery[order[first]] = True
        yield in_gallery
