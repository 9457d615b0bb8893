"""Exact search for the nearest vectors by cosine similarity, with faiss or matrix products of torch."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from visionattn.checks import check_choice, check_range
from visionattn.errors import UserError

Backend = Literal["auto", "faiss", "torch"]

CHUNK_BYTES = 64 << 20
"""Size of one chunk of similarities in float32; faiss has chunks of its own."""

MARGIN = 16
"""Candidates beyond those that are wanted."""

DOUBT = 1e-5
"""Candidates that are nearer to each other than this may be in the wrong order: products in float32 are not exact."""

Find = Callable[[Tensor, int], Tensor]


def nearest(
    query: Tensor, gallery: Tensor, topk: int, *, backend: Backend = "auto", device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return the similarities and the gallery's places of the nearest vectors, both `[Q, topk]`, nearest first.

    A backend finds candidates. Their similarities are computed in float64 and rounded to float32, so that results are
    the same for every backend and device. Vectors of equal similarity are in the gallery's order.

    Args:
        query: Vectors of length 1 `[Q, D]`, float32, on the CPU.
        gallery: Vectors of length 1 `[G, D]`, float32, on the CPU.
        topk: Number of vectors for each query; all of them if the gallery has fewer.
        backend: "faiss", "torch", or "auto": faiss if it is installed and the device is the CPU.
        device: Device of torch's products.

    Raises:
        ValueError: A number out of its bounds, or faiss is not installed.
    """
    check_range("topk", topk, 1, error=UserError)
    find = _finder(gallery, backend, torch.device(device))
    parts = [_rank(part, gallery, min(topk, len(gallery)), find) for part in query.split(1024)]
    similarities, places = (torch.cat(found) for found in zip(*parts, strict=True))
    return similarities, places


def check_backend(backend: Backend) -> None:
    """Raise a ValueError unless the backend exists and is installed."""
    check_choice("backend", backend, ("auto", "faiss", "torch"), error=UserError)
    if backend == "faiss" and not find_spec("faiss"):
        raise UserError('--backend faiss needs faiss, which is not installed: pip install "visionattn[search]"')


def _finder(gallery: Tensor, backend: Backend, device: torch.device) -> Find:
    check_backend(backend)
    if backend == "faiss" or (backend == "auto" and device.type == "cpu" and find_spec("faiss")):
        return partial(_find_with_faiss, gallery)
    return partial(_find_with_torch, gallery.to(device))


def _find_with_faiss(gallery: Tensor, query: Tensor, count: int) -> Tensor:
    import faiss

    # Exact as IndexFlatIP, which would hold a copy of the gallery.
    _, places = faiss.knn(query.numpy(), gallery.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(places)


def _find_with_torch(gallery: Tensor, query: Tensor, count: int) -> Tensor:
    parts = query.to(gallery.device).split(max(1, CHUNK_BYTES // (4 * len(gallery))))
    return torch.cat([(part @ gallery.T).topk(count, sorted=False).indices for part in parts]).cpu()


def _rank(query: Tensor, gallery: Tensor, topk: int, find: Find) -> tuple[Tensor, Tensor]:
    """Rank candidates, with more of them until none that was left out could be among the first."""
    count = min(topk + MARGIN, len(gallery))
    while True:
        places = find(query, count).sort().values  # in the gallery's order, which a stable sort keeps
        similarities = _similarities(query, gallery, places)
        order = similarities.sort(descending=True, stable=True).indices
        similarities, places = similarities.gather(1, order), places.gather(1, order)
        if count == len(gallery) or bool((similarities[:, topk - 1] - similarities[:, -1] > DOUBT).all()):
            return similarities[:, :topk], places[:, :topk]
        count = min(2 * count, len(gallery))


def _similarities(query: Tensor, gallery: Tensor, places: Tensor) -> Tensor:
    """Return the similarities `[Q, C]` of queries and their own candidates, whose places are `[Q, C]`."""
    columns = places.split(16, dim=1)  # bounds the memory of vectors in float64
    found = [torch.einsum("qd,qcd->qc", query.double(), gallery[part].double()) for part in columns]
    return torch.cat(found, dim=1).float()
