"""Nearest vectors: exactly those of brute force in float64, in the same order, by every backend."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import visionattn.embedding.nearest as module
from visionattn.embedding.nearest import nearest


def vectors(count: int, dim: int = 24, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def brute_force(query: Tensor, gallery: Tensor, topk: int) -> list[list[int]]:
    """Sort by similarity in float64, rounded to float32, then by place, in plain Python."""
    products = query.double().numpy() @ gallery.double().numpy().T
    return [sorted(range(len(row)), key=lambda place: (-np.float32(row[place]), place))[:topk] for row in products]


@pytest.fixture
def faiss(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Install a faiss whose products have an error as large as that of sums in float32, in another order."""
    counts = []

    def knn(query: np.ndarray, gallery: np.ndarray, count: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
        assert metric == "inner product"
        counts.append(count)
        noise = np.random.default_rng(0).uniform(-1e-6, 1e-6, (len(query), len(gallery)))
        products = query @ gallery.T + noise
        places = np.argsort(-products, axis=1)[:, :count]
        return np.take_along_axis(products, places, 1), places

    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(knn=knn, METRIC_INNER_PRODUCT="inner product"))
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    return counts


@pytest.mark.parametrize("topk", [1, 7, 300])
def test_nearest_equals_brute_force(topk: int) -> None:
    query, gallery = vectors(9, seed=1), vectors(300)
    similarities, places = nearest(query, gallery, topk, backend="torch")
    assert places.tolist() == brute_force(query, gallery, topk)
    expected = (query.double() @ gallery.double().T).float().gather(1, places)
    assert torch.equal(similarities, expected)


def test_equal_vectors_are_in_the_order_of_the_gallery(faiss: list[int]) -> None:
    """More copies than candidates: none of those that come first may be missing."""
    gallery = vectors(400)
    gallery[100:250] = gallery[7]
    for backend in ("torch", "faiss"):
        _, places = nearest(gallery[7:8], gallery, 5, backend=backend)
        assert places.tolist() == [[7, 100, 101, 102, 103]]


def test_backends_agree(faiss: list[int]) -> None:
    query, gallery = vectors(20, seed=1), vectors(500)
    gallery[400:450] = gallery[:50] + 1e-7 * torch.randn(50, 24)  # nearer to each other than float32 tells
    gallery = F.normalize(gallery, dim=1)
    ours, theirs = (nearest(query, gallery, 30, backend=backend) for backend in ("torch", "auto"))
    assert faiss, "auto takes faiss if it is installed"
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert ours[1].tolist() == brute_force(query, gallery, 30)


def test_installed_faiss_agrees() -> None:
    pytest.importorskip("faiss")
    query, gallery = vectors(20, seed=1), vectors(2000)
    gallery[100:150] = gallery[5]
    ours, theirs = (nearest(query, gallery, 10, backend=backend) for backend in ("torch", "faiss"))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_chunks_do_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = vectors(33, seed=1), vectors(100)
    whole = nearest(query, gallery, 5, backend="torch")
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 100 * 4)  # four queries
    parts = nearest(query, gallery, 5, backend="torch")
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_wrong_numbers_and_missing_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--topk must be at least 1, got 0"):
        nearest(vectors(1), vectors(2), 0)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        nearest(vectors(1), vectors(2), 1, backend="faiss")
    assert nearest(vectors(1), vectors(2), 1)[1].shape == (1, 1)
