"""Measures of re-identification from features of queries and gallery, for training and evaluation."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from visionattn.metrics.reranking import rerank
from visionattn.metrics.retrieval import (
    distances,
    evaluate_distances,
    evaluate_retrieval,
    evaluate_vehicleid,
    prepare,
)


class Gallery(NamedTuple):
    """Features `[N, D]` of images on the CPU, with identities and cameras `[N]`.

    Attributes:
        place: indices in the split `[N]`; queries come first.
    """

    place: Tensor
    features: Tensor
    ids: Tensor
    cameras: Tensor


def merge(parts: Iterable[Gallery]) -> Gallery:
    """Concatenate images, in their order in the split; raise a ValueError if there are none."""
    found = [part for part in parts if len(part.place)]
    if not found:
        raise ValueError("not one image of the query and gallery could be read")
    whole = Gallery(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))
    order = whole.place.argsort()
    assert (whole.place[order].diff() > 0).all(), "an image was seen twice"
    return Gallery(*(tensor[order] for tensor in whole))


def gather(parts: list[Gallery]) -> list[Gallery]:
    """Return the parts of all processes in the first one, and nothing in the others."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return parts
    found: list[Any] | None = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(parts, found)
    return [part for theirs in found or () for part in theirs]


def divide(images: Gallery, num_query: int) -> tuple[Gallery, Gallery]:
    """Return queries, the first ``num_query`` places, and gallery."""
    is_query = images.place < num_query
    query, gallery = (Gallery(*(tensor[chosen] for tensor in images)) for chosen in (is_query, ~is_query))
    return query, gallery


def rank(
    query: Gallery, gallery: Gallery, chosen: Sequence[int], count: int, *, reranked: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Return the nearest images of some queries; images of the same identity from the same camera are left out.

    Returns:
        For each query of ``chosen`` the indices of the first ``count`` gallery images, and whether they match.
    """
    wanted = torch.tensor(chosen)
    if reranked:
        distance = torch.cat(list(rerank(query.features, gallery.features)))[wanted]
    else:
        cpu = torch.device("cpu")
        own, theirs = (prepare(x, "cosine", cpu) for x in (query.features[wanted], gallery.features))
        distance = distances(own, theirs, "cosine")
    same = query.ids[wanted, None] == gallery.ids
    is_out = same & (query.cameras[wanted, None] == gallery.cameras)
    order = distance.masked_fill(is_out, torch.inf).argsort(dim=1, stable=True)
    kept = [places[~out[places]][:count] for places, out in zip(order, is_out, strict=True)]
    return [(places, matches[places]) for places, matches in zip(kept, same, strict=True)]


def measure(
    images: Gallery,
    num_query: int,
    protocol: str,
    *,
    reranked: bool = False,
    device: torch.device | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Return mAP, mINP and CMC by cosine distances, as :func:`~visionattn.metrics.retrieval.evaluate_retrieval` does.

    Of the images, the first ``num_query`` places are queries. By protocol ``camera``, matches from the query's own
    camera do not count; by ``vehicleid``, each image is in turn a query or in the gallery. Re-ranking always runs on
    the CPU.

    Raises:
        ValueError: no query has a match, features are not finite, or VehicleID is to be re-ranked.
    """
    if protocol == "vehicleid":
        if reranked:
            raise ValueError("VehicleID is measured on ten galleries of one image per identity: nothing to re-rank")
        return evaluate_vehicleid(images.features, images.ids, device=device)
    query, gallery = divide(images, num_query)
    known = (query.ids, gallery.ids, query.cameras, gallery.cameras)
    if reranked:
        return evaluate_distances(rerank(query.features, gallery.features), *known, progress=progress)
    return evaluate_retrieval(query.features, gallery.features, *known, device=device, progress=progress)
