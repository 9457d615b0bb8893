"""Laws of the measures of retrieval, on drawn rankings with ties, cameras and queries without a match."""

from typing import Any, NamedTuple

import pytest
import torch
from holding import holds_for
from hypothesis import strategies as st
from torch import Tensor

from visionattn.metrics.reranking import rerank
from visionattn.metrics.retrieval import evaluate_distances, evaluate_retrieval


class Case(NamedTuple):
    """Arguments of ``evaluate_distances``; every query has a match."""

    distances: Tensor
    query_ids: Tensor
    gallery_ids: Tensor
    query_cams: Tensor
    gallery_cams: Tensor


@st.composite
def cases(draw: Any, ties: bool = True) -> Case:
    queries, others = draw(st.integers(1, 5)), draw(st.integers(0, 9))
    numbers = st.integers(0, 2)

    def integers(count: int) -> Tensor:
        return torch.tensor(draw(st.lists(numbers, min_size=count, max_size=count)), dtype=torch.int64)

    query_ids, query_cams = integers(queries), integers(queries)
    # A match of each query by another camera, then any others.
    gallery_ids = torch.cat([query_ids, integers(others)])
    gallery_cams = torch.cat([query_cams + 1, integers(others)])
    shape = queries, len(gallery_ids)
    total = shape[0] * shape[1]
    if ties:
        cells = draw(st.lists(st.integers(0, 6), min_size=total, max_size=total))
    else:
        cells = draw(st.permutations(range(total)))
    return Case(torch.tensor(cells).view(shape) / 8, query_ids, gallery_ids, query_cams, gallery_cams)


@st.composite
def features(draw: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    sizes = draw(st.integers(1, 8)), draw(st.integers(2, 30))
    query, gallery = (torch.randn(size, 6, generator=generator) for size in sizes)
    return query, gallery


def measure(case: Case, **changes: Any) -> dict[str, Any]:
    return evaluate_distances(*case._replace(**changes), max_rank=5)


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def with_gallery(case: Case, order: Tensor) -> Case:
    return case._replace(
        distances=case.distances[:, order], gallery_ids=case.gallery_ids[order], gallery_cams=case.gallery_cams[order]
    )


@holds_for(cases())
def test_measures_are_fractions_and_bound_each_other(case: Case) -> None:
    found = measure(case)
    # Of M matches, the last at rank R, the n-th has a precision of n / R or more: AP is at least (M + 1) / 2R.
    assert 0 < found["mINP"] / 2 < found["mAP"] <= 1
    assert found["mINP"] <= 1
    assert all(0 <= low <= high <= 1 for low, high in zip(found["cmc"], found["cmc"][1:], strict=False))
    assert (found["mAP"] == 1) == (found["mINP"] == 1)
    assert found["num_valid_queries"] == len(case.query_ids)
    assert found["num_skipped_queries"] == 0


@holds_for(cases())
def test_measures_are_one_if_all_matches_rank_first(case: Case) -> None:
    wrong = case.query_ids[:, None] != case.gallery_ids
    found = measure(case, distances=case.distances + 2.0 * wrong)
    assert (found["mAP"], found["mINP"], found["cmc"]) == (1, 1, [1] * 5)
    worst = measure(case, distances=case.distances + 2.0 * ~wrong)
    given = measure(case)
    assert worst["mAP"] <= given["mAP"] + 1e-12
    assert worst["mINP"] <= given["mINP"] + 1e-12


@holds_for(cases(), st.randoms(use_true_random=False))
def test_measures_do_not_depend_on_the_order_of_queries(case: Case, random: Any) -> None:
    order = torch.tensor(random.sample(range(len(case.query_ids)), len(case.query_ids)))
    same(
        measure(
            case._replace(
                distances=case.distances[order], query_ids=case.query_ids[order], query_cams=case.query_cams[order]
            )
        ),
        measure(case),
    )


@holds_for(cases(ties=False), st.randoms(use_true_random=False))
def test_measures_without_ties_do_not_depend_on_the_order_of_the_gallery(case: Case, random: Any) -> None:
    order = torch.tensor(random.sample(range(len(case.gallery_ids)), len(case.gallery_ids)))
    same(measure(with_gallery(case, order)), measure(case))


@holds_for(cases())
def test_ties_are_broken_by_the_order_of_the_gallery(case: Case) -> None:
    """Each image counts as slightly farther than the ones before it."""
    same(measure(case, distances=case.distances + torch.arange(len(case.gallery_ids)) / 1024), measure(case))


@holds_for(cases(), st.sampled_from(["double", "square", "root", "exponential"]))
def test_measures_depend_on_the_order_of_distances_alone(case: Case, how: str) -> None:
    x = case.distances
    transformed = {"double": 2 * x + 1, "square": x**2, "root": x.sqrt(), "exponential": x.exp()}[how]
    same(measure(case, distances=transformed), measure(case))


@holds_for(cases(), st.integers(1, 4), st.floats(0, 1))
def test_gallery_images_of_the_querys_own_camera_are_ignored(case: Case, copies: int, distance: float) -> None:
    """Images of the query's identity by its own camera are left out of the ranking."""
    one = Case(*(x[:1] for x in case[:2]), case.gallery_ids, case.query_cams[:1], case.gallery_cams)
    junk = one._replace(
        distances=torch.cat([torch.full((1, copies), distance), one.distances], 1),
        gallery_ids=torch.cat([one.query_ids.repeat(copies), one.gallery_ids]),
        gallery_cams=torch.cat([one.query_cams.repeat(copies), one.gallery_cams]),
    )
    same(measure(junk), measure(one))


@holds_for(cases(ties=False))
def test_additional_wrong_image_never_improves_measures(case: Case) -> None:
    before = measure(case)
    more = case._replace(
        distances=torch.cat([torch.zeros(len(case.query_ids), 1), case.distances + 1], 1),
        gallery_ids=torch.cat([torch.tensor([99]), case.gallery_ids]),
        gallery_cams=torch.cat([torch.tensor([0]), case.gallery_cams]),
    )
    after = measure(more)
    assert after["mAP"] < before["mAP"]
    assert after["cmc"] == [0, *before["cmc"][:-1]], "every list begins with it"


@holds_for(cases(), st.integers(1, 5))
def test_measures_do_not_depend_on_chunks_of_distances(case: Case, rows: int) -> None:
    same(evaluate_distances(case.distances.split(rows), *case[1:], max_rank=5), measure(case))


@holds_for(features(), st.floats(0.1, 100), st.sampled_from(["cosine", "euclidean"]))
def test_measures_do_not_change_when_features_are_scaled_and_rotated(
    pair: tuple[Tensor, Tensor], scale: float, metric: Any
) -> None:
    query, gallery = (x.double() for x in pair)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    ids = torch.arange(len(query)) % 2, torch.arange(len(gallery)) % 2
    found = evaluate_retrieval(scale * query @ turn, scale * gallery @ turn, *ids, metric=metric)
    same(found, evaluate_retrieval(query, gallery, *ids, metric=metric))


K = st.tuples(st.integers(1, 12), st.integers(1, 6)).map(lambda k: (k[0], min(k[0] + 1, k[1])))


def reranked(query: Tensor, gallery: Tensor, k: tuple[int, int], share: float = 0.3) -> Tensor:
    return torch.cat(list(rerank(query, gallery, *k, share)))


@holds_for(features(), K)
def test_reranked_distances_stay_within_bounds(pair: tuple[Tensor, Tensor], k: tuple[int, int]) -> None:
    first, jaccard, mixed = (reranked(*pair, k, share) for share in (1.0, 0.0, 0.3))
    for distances in (first, jaccard, mixed):
        assert distances.shape == (len(pair[0]), len(pair[1]))
        assert ((distances >= 0) & (distances <= 1 + 1e-5)).all()
    torch.testing.assert_close(mixed, 0.3 * first + 0.7 * jaccard, rtol=1e-4, atol=1e-5)


@holds_for(features(), K, st.randoms(use_true_random=False), st.floats(0.1, 10))
def test_reranking_does_not_depend_on_order_or_length(
    pair: tuple[Tensor, Tensor], k: tuple[int, int], random: Any, scale: float
) -> None:
    query, gallery = pair
    order = torch.tensor(random.sample(range(len(gallery)), len(gallery)))
    torch.testing.assert_close(
        reranked(scale * query, gallery[order], k), reranked(query, gallery, k)[:, order], rtol=1e-3, atol=1e-4
    )


@holds_for(features())
def test_reranking_without_second_neighbours_keeps_the_order(pair: tuple[Tensor, Tensor]) -> None:
    query, gallery = pair
    unit_query, unit_gallery = (torch.nn.functional.normalize(x, dim=1) for x in pair)
    squared = torch.cdist(unit_query, unit_gallery).square()
    ratio = reranked(query, gallery, (1, 1), 1.0) / squared
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-2, atol=1e-3)
