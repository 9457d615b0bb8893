"""Retrieval measures against a plain computation, one query and one gallery image at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from visionattn.metrics.reranking import rerank
from visionattn.metrics.retrieval import evaluate_distances, evaluate_retrieval, evaluate_vehicleid


def by_hand(
    distance: Tensor, query_ids: Tensor, gallery_ids: Tensor, query_cams: Tensor, gallery_cams: Tensor, ranks: int
):
    """As the protocol is told: sort, leave out, walk down the list."""
    precisions, penalties, curve, skipped = [], [], np.zeros(ranks), 0
    for i, row in enumerate(distance.tolist()):
        ranked = sorted(range(len(row)), key=lambda j: (row[j], j))
        ranked = [j for j in ranked if not (gallery_ids[j] == query_ids[i] and gallery_cams[j] == query_cams[i])]
        places = [place for place, j in enumerate(ranked, 1) if gallery_ids[j] == query_ids[i]]
        if not places:
            skipped += 1
            continue
        precisions.append(np.mean([(n + 1) / place for n, place in enumerate(places)]))
        penalties.append(len(places) / places[-1])
        curve[places[0] - 1 :] += 1
    valid = len(precisions)
    return {
        "mAP": np.mean(precisions) if valid else None,
        "mINP": np.mean(penalties) if valid else None,
        "cmc": (curve / max(1, valid)).tolist(),
        "num_valid_queries": valid,
        "num_skipped_queries": skipped,
    }


def check(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def draw(seed: int):
    """A random case with ties, images that are left out, and queries without a match."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=generator)

    queries, gallery, ids, cams = (1 + int(integers(n, 1)) for n in (6, 12, 5, 3))
    distance = integers(4, queries, gallery).float() / 8
    return distance, integers(ids, queries), integers(ids, gallery), integers(cams, queries), integers(cams, gallery)


@pytest.mark.parametrize("seeds", [range(i, i + 100) for i in range(0, 1000, 100)], ids=lambda r: f"{r[0]}-{r[-1]}")
def test_equals_a_plain_computation(seeds: range) -> None:
    valid = 0
    for seed in seeds:
        case = draw(seed)
        expected = by_hand(*case, ranks=5)
        if not expected["num_valid_queries"]:
            with pytest.raises(ValueError, match=r"none of \d+ queries has a match"):
                evaluate_distances(*case, max_rank=5)
            continue
        valid += 1
        found = evaluate_distances(*case, max_rank=5)
        check(found, expected)
    assert valid > 50


SEED = next(seed for seed in range(100) if len(draw(seed)[0]) > 3 and by_hand(*draw(seed), 5)["num_valid_queries"] > 2)


def features_of(case, metric: str):
    _, query_ids, gallery_ids, *cams = case
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(len(x), 8, generator=generator) for x in (query_ids, gallery_ids))
    if metric == "cosine":
        unit_query, unit_gallery = (x / x.norm(dim=1, keepdim=True) for x in (query, gallery))
        distance = 1 - unit_query @ unit_gallery.T
    else:
        distance = torch.cdist(query, gallery)
    return query, gallery, distance, query_ids, gallery_ids, *cams


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("chunk_bytes", [1, 300, 1 << 20])
def test_features_in_chunks(metric: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionattn.metrics.retrieval.CHUNK_BYTES", chunk_bytes)
    query, gallery, distance, *rest = features_of(draw(SEED), metric)
    done = []
    found = evaluate_retrieval(query, gallery, *rest, metric=metric, max_rank=5, progress=done.append)
    expected = by_hand(distance, *rest, ranks=5)
    assert found["num_valid_queries"] > 0
    check(found, expected)
    assert sum(done) == len(query)


def test_ties_fall_to_the_order_of_the_gallery() -> None:
    ids = torch.tensor([1])
    for gallery_ids, expected in (([0, 1], 0.5), ([1, 0], 1.0)):
        found = evaluate_distances(torch.zeros(1, 2), ids, torch.tensor(gallery_ids))
        assert found["mAP"] == expected


def test_mean_average_precision_equals_that_of_torchmetrics() -> None:
    from torchmetrics.retrieval import RetrievalMAP

    torch.manual_seed(0)
    distance = torch.rand(20, 50)
    query_ids, gallery_ids = torch.randint(5, (20,)), torch.randint(5, (50,))
    target = query_ids[:, None] == gallery_ids
    expected = RetrievalMAP()(1 - distance.flatten(), target.flatten(), indexes=torch.arange(20).repeat_interleave(50))
    found = evaluate_distances(distance, query_ids, gallery_ids)
    assert found["mAP"] == pytest.approx(expected.item(), abs=1e-6)
    assert found["num_skipped_queries"] == 0


def test_vehicleid_draws_one_image_per_identity() -> None:
    torch.manual_seed(0)
    ids = torch.arange(6).repeat_interleave(4)
    centers = torch.eye(6)[ids]
    perfect = evaluate_vehicleid(centers, ids, trials=3)
    assert perfect["mAP"] == 1
    assert perfect["num_valid_queries"] == 18
    assert perfect["num_trials"] == 3
    noisy = centers + torch.randn(24, 6)
    results = [evaluate_vehicleid(noisy, ids, trials=2, seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0]["mAP"] != results[2]["mAP"]
    # With one match per query, AP and INP are one over its rank.
    assert results[0]["mAP"] == pytest.approx(results[0]["mINP"])


def rerank_by_matrices(query: Tensor, gallery: Tensor, k1: int, k2: int, lambda_value: float) -> np.ndarray:
    """The paper's steps on matrices of all pairs."""
    x = torch.cat([query, gallery]).double()
    x = x / x.norm(dim=1, keepdim=True)
    distance = (2 - 2 * x @ x.T).clamp(min=0).numpy()
    distance = distance / distance.max(axis=1, keepdims=True)
    number = len(distance)
    order = distance.argsort(axis=1, kind="stable")

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i, : k + 1].tolist() if i in order[j, : k + 1]}

    vectors = np.zeros((number, number))
    for i in range(number):
        first = reciprocal(i, k1)
        expanded = set(first)
        for j in first:
            more = reciprocal(j, round(k1 / 2))
            if len(more & first) > 2 / 3 * len(more):
                expanded |= more
        members = sorted(expanded)
        weights = np.exp(-distance[i, members])
        vectors[i, members] = weights / weights.sum()
    vectors = np.stack([vectors[order[i, :k2]].mean(axis=0) for i in range(number)])
    jaccard = np.empty((number, number))
    for i in range(number):
        jaccard[i] = 1 - np.minimum(vectors[i], vectors).sum(1) / np.maximum(vectors[i], vectors).sum(1)
    mixed = (1 - lambda_value) * jaccard + lambda_value * distance
    return mixed[: len(query), len(query) :]


@pytest.mark.parametrize(
    ("k1", "k2", "lambda_value"), [(20, 6, 0.3), (7, 1, 0.3), (8, 3, 0.0), (9, 4, 1.0)], ids=lambda x: str(x)
)
def test_reranking_equals_the_paper_on_matrices(
    k1: int, k2: int, lambda_value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionattn.metrics.reranking.EXPANSION_ROWS", 64)
    monkeypatch.setattr("visionattn.metrics.reranking.CHUNK_BYTES", 40_000)
    torch.manual_seed(0)
    centers = torch.randn(30, 16)
    query, gallery = (centers[torch.randint(30, (n,))] + 0.7 * torch.randn(n, 16) for n in (80, 220))
    found = torch.cat(list(rerank(query, gallery, k1, k2, lambda_value)))
    expected = rerank_by_matrices(query, gallery, k1, k2, lambda_value)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_reranking_of_fewer_images_than_neighbours() -> None:
    torch.manual_seed(0)
    found = torch.cat(list(rerank(torch.randn(2, 4), torch.randn(3, 4))))
    assert found.shape == (2, 3)
    assert found.isfinite().all()


@pytest.mark.parametrize("number", [5, 60])
@pytest.mark.parametrize("kind", ["ones", "noise", "zeros", "mixed"])
def test_reranked_distances_of_identical_features_are_finite(kind: str, number: int) -> None:
    torch.manual_seed(0)
    # Noise has length 1 up to rounding, and its distances are what is rounded.
    feature = {"ones": torch.ones(1, 8), "zeros": torch.zeros(1, 8)}.get(kind, torch.randn(1, 8))
    others = torch.randn(number if kind == "mixed" else 0, 8)
    features = torch.cat([feature.repeat(number, 1), others])
    found = torch.cat(list(rerank(features[:2], features[2:])))
    assert found.isfinite().all()
    assert 0 <= found.min() <= found.max() <= 1 + 1e-6


NAN = torch.tensor([[0.0, torch.nan], [1.0, 2.0]])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (torch.ones(2, 3), torch.ones(2, 4)),
            {},
            r"features must be \[Q, D\] and \[G, D\]; got \[2, 3\] and \[2, 4\]",
        ),
        ((torch.ones(0, 3), torch.ones(2, 3)), {}, "there are no query features"),
        ((torch.ones(2, 2), NAN), {}, "1 of 2 gallery features hold NaN or infinity"),
        ((torch.ones(2, 2), torch.ones(2, 2)), {"metric": "manhattan"}, "metric must be 'cosine' or 'euclidean'"),
        ((torch.ones(2, 2), torch.ones(2, 2)), {"max_rank": 0}, "max_rank must be at least 1; got 0"),
        ((torch.ones(2, 2), torch.ones(2, 2)), {"query_cams": torch.ones(2).long()}, "must be given together"),
        ((torch.ones(2, 2), torch.ones(3, 2)), {}, r"distances must be \[2, 2\]; got rows 0 to 2 of 3 columns"),
    ],
)
def test_bad_input_is_named(arguments, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(*arguments, torch.tensor([0, 1]), torch.tensor([0, 1]), **options)


def test_bad_neighbourhoods_are_named() -> None:
    with pytest.raises(ValueError, match=r"got k1 20, k2 30, lambda_value 0\.3"):
        rerank(torch.ones(2, 2), torch.ones(2, 2), k2=30)
