"""Measures of object discovery against scikit-learn, loops over masks, and cases that are plain to see."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torchmetrics import MetricCollection

from visionattn.metrics.object_discovery import (
    ARI,
    CorLoc,
    DiscoveryMetric,
    ForegroundARI,
    MeanBestOverlap,
    adjusted_rand_index,
    correct_localization,
    foreground_ari,
    mean_best_overlap,
)

# Two objects, 1 and 2, before a background, 3, with one position that nobody labelled.
SCENE = torch.tensor([[1, 1, 3, 3], [1, 1, 3, 2], [3, 3, 3, 2], [0, 3, 3, 2]])
THINGS = torch.tensor([False, True, True, False])
CLASSES = torch.tensor([-1, 4, 4, 0])


def random_maps(seed: int, maps: int = 5, predicted: int = 6, segments: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    truth = draw(0, segments + 1, maps, 9, 11)
    agrees = torch.rand(truth.shape, generator=generator) < seed % 3 / 2
    proposed = torch.where(agrees, truth % predicted, draw(-1, predicted, maps, 9, 11))
    things = draw(0, 2, maps, segments + 1).bool()
    things[:, 0] = False
    classes = draw(0, 3, maps, segments + 1)
    classes[:, 0] = -1
    return proposed, truth, classes, things


def masks(proposed: Tensor) -> list[Tensor]:
    return [proposed == number for number in range(int(proposed.max()) + 1) if (proposed == number).any()]


def brute_overlap(proposed: Tensor, truth: Tensor, objects: list[Tensor]) -> float:
    """For each object a loop over proposals, without the positions that nobody labelled."""
    labelled = truth > 0
    best = []
    for real in objects:
        shared = [(float((real & mask).sum()), float((real | (mask & labelled)).sum())) for mask in masks(proposed)]
        best.append(max((both / union for both, union in shared), default=0.0))
    return sum(best) / len(best) if best else math.nan


def box(mask: Tensor) -> tuple[int, int, int, int]:
    y, x = np.nonzero(mask.numpy())
    return x.min(), y.min(), x.max() + 1, y.max() + 1


def brute_localization(proposed: Tensor, objects: list[Tensor]) -> float:
    hits = []
    for left, top, right, bottom in map(box, objects):
        for a, b, c, d in map(box, masks(proposed)):
            shared = max(0, min(right, c) - max(left, a)) * max(0, min(bottom, d) - max(top, b))
            union = (right - left) * (bottom - top) + (c - a) * (d - b) - shared
            hits.append(shared / union > 0.5)
    return float(any(hits)) if objects else math.nan


@pytest.mark.parametrize("seed", range(6))
def test_ari_is_that_of_scikit_learn(seed: int) -> None:
    proposed, truth, _, things = random_maps(seed)
    foreground = things.gather(1, truth.flatten(1)).view_as(truth)
    for ours, kept in (
        (adjusted_rand_index(proposed, truth), truth > 0),
        (foreground_ari(proposed, truth, things), foreground),
    ):
        parts = [(t[k], p[k]) for t, p, k in zip(truth, proposed, kept, strict=True)]
        theirs = [adjusted_rand_score(*part) if len(part[0]) else math.nan for part in parts]
        assert ours.dtype == torch.float64
        assert ours.tolist() == pytest.approx(theirs, abs=1e-14, nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
def test_best_overlap_and_boxes_equal_loops(seed: int) -> None:
    proposed, truth, classes, things = random_maps(seed)
    by_instance, by_class, boxes = [], [], []
    for p, t, c, is_thing in zip(proposed, truth, classes, things, strict=True):
        numbers = [number for number in is_thing.nonzero().flatten().tolist() if (t == number).any()]
        objects = [t == number for number in numbers]
        kinds = [torch.stack([t == n for n in numbers if c[n] == kind]).any(0) for kind in {int(c[n]) for n in numbers}]
        by_instance.append(brute_overlap(p, t, objects))
        by_class.append(brute_overlap(p, t, kinds))
        boxes.append(brute_localization(p, objects))
    assert mean_best_overlap(proposed, truth, things).tolist() == pytest.approx(by_instance, abs=1e-14, nan_ok=True)
    found = mean_best_overlap(proposed, truth, things, classes)
    assert found.tolist() == pytest.approx(by_class, abs=1e-14, nan_ok=True)
    assert correct_localization(proposed, truth, things).tolist() == pytest.approx(boxes, nan_ok=True)


def test_true_segments_score_one() -> None:
    for proposed in (SCENE, 7 - SCENE):
        assert adjusted_rand_index(proposed, SCENE) == 1
        assert foreground_ari(proposed, SCENE, THINGS) == 1
        assert mean_best_overlap(proposed, SCENE, THINGS) == 1
        assert correct_localization(proposed, SCENE, THINGS) == 1


def test_background_matters_to_overlap_and_not_to_fg_ari() -> None:
    proposed = torch.where(SCENE == 2, 2, 1)  # object 1 and the background together
    assert foreground_ari(proposed, SCENE, THINGS) == 1
    assert adjusted_rand_index(proposed, SCENE) < 0.5
    # Object 2 is found, and object 1 is 4 of the 12 labelled positions of the other segment.
    assert mean_best_overlap(proposed, SCENE, THINGS) == pytest.approx((1 + 4 / 12) / 2)
    # One class has both: the 7 positions of both, in a union of 15 with everything, or the 3 of one.
    assert mean_best_overlap(proposed, SCENE, THINGS, CLASSES) == pytest.approx(3 / 7)


def test_classes_are_found_as_a_whole() -> None:
    proposed = (SCENE == 3).long()  # both objects, and the unlabelled position, in one segment
    assert mean_best_overlap(proposed, SCENE, THINGS, CLASSES) == 1
    assert mean_best_overlap(proposed, SCENE, THINGS) == pytest.approx((4 / 7 + 3 / 7) / 2)
    others = torch.tensor([-1, 4, 2, 0])
    assert mean_best_overlap(proposed, SCENE, THINGS, others) == mean_best_overlap(proposed, SCENE, THINGS)


@pytest.mark.parametrize(("columns", "expected"), [(1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0)])
def test_box_must_share_more_than_half(columns: int, expected: float) -> None:
    # The object is 4 positions wide: with 2 the IoU is just 0.5.
    truth, proposed = torch.full((6, 6), 2), torch.full((6, 6), -1)
    truth[1:5, 1:5] = 1
    proposed[1:5, 1 : 1 + columns] = 0
    assert correct_localization(proposed, truth, torch.tensor([False, True, False])) == expected


def test_box_spans_the_outermost_positions() -> None:
    truth, proposed = torch.full((5, 5), 2), torch.full((5, 5), -1)
    truth[:4, :4] = 1
    proposed[0, 0] = proposed[3, 3] = 0  # two corners: no overlap to speak of, and the same box
    things = torch.tensor([False, True, False])
    assert correct_localization(proposed, truth, things) == 1
    assert mean_best_overlap(proposed, truth, things) == 2 / 16


def test_unlabelled_positions_are_left_out() -> None:
    proposed, truth, classes, things = random_maps(4)
    other = torch.where(truth == 0, torch.randint_like(truth, 6), proposed)
    assert torch.equal(adjusted_rand_index(proposed, truth), adjusted_rand_index(other, truth))
    assert torch.equal(foreground_ari(proposed, truth, things), foreground_ari(other, truth, things))
    for kinds in (None, classes):
        assert torch.equal(
            mean_best_overlap(proposed, truth, things, kinds), mean_best_overlap(other, truth, things, kinds)
        )


def test_single_segments_agree() -> None:
    whole, things = torch.ones(3, 4, dtype=torch.int64), torch.tensor([False, True])
    for proposed in (whole, torch.full_like(whole, -1)):
        assert adjusted_rand_index(proposed, whole) == foreground_ari(proposed, whole, things) == 1
    apart = torch.arange(1, 13).view(3, 4)
    assert adjusted_rand_index(apart, apart) == 1
    assert adjusted_rand_index(apart, whole) == adjusted_rand_index(whole, apart) == 0


def test_single_position_scores() -> None:
    one, things = torch.ones(1, 1, dtype=torch.int64), torch.tensor([False, True])
    for measure in (foreground_ari, mean_best_overlap, correct_localization):
        assert measure(one, one, things) == 1
    assert adjusted_rand_index(one, one) == 1


def test_empty_prediction_finds_no_object() -> None:
    nothing = torch.full_like(SCENE, -1)
    assert adjusted_rand_index(nothing, SCENE) == foreground_ari(nothing, SCENE, THINGS) == 0
    assert mean_best_overlap(nothing, SCENE, THINGS) == correct_localization(nothing, SCENE, THINGS) == 0


def test_without_objects_there_is_nothing_to_find() -> None:
    for measure in (foreground_ari, mean_best_overlap, correct_localization):
        assert measure(SCENE, SCENE, torch.zeros(4, dtype=torch.bool)).isnan()
        assert measure(SCENE, torch.zeros_like(SCENE), THINGS).isnan()
        assert measure(SCENE, torch.where(SCENE == 3, 3, 0), THINGS).isnan()
    assert adjusted_rand_index(SCENE, torch.zeros_like(SCENE)).isnan()


def test_batches_are_as_their_images_one_by_one() -> None:
    proposed, truth, classes, things = random_maps(5)
    strided = proposed.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    measures = {
        ARI: [adjusted_rand_index(p, t) for p, t in zip(proposed, truth, strict=True)],
        ForegroundARI: [foreground_ari(*x) for x in zip(proposed, truth, things, strict=True)],
        MeanBestOverlap: [mean_best_overlap(*x) for x in zip(proposed, truth, things, strict=True)],
        CorLoc: [correct_localization(*x) for x in zip(proposed, truth, things, strict=True)],
    }
    for kind, single in measures.items():
        for ids in (proposed, strided, proposed.to(torch.int8)):
            values = kind().measure(ids, truth.to(torch.uint8), classes, things)
            assert torch.equal(values, torch.stack(single))
        assert kind().measure(proposed[:0], truth[:0], classes[:0], things[:0]).shape == (0,)


def test_metrics_average_over_images_that_have_the_measure() -> None:
    collection = MetricCollection(
        {
            "ari": ARI(),
            "fg": ForegroundARI(),
            "mbo_i": MeanBestOverlap(),
            "mbo_c": MeanBestOverlap(True),
            "loc": CorLoc(),
        }
    )
    proposed, truth, classes, things = random_maps(4, maps=7)
    truth[2] = 0
    things[4] = False
    for part in (slice(0, 3), slice(3, 3), slice(3, 7)):
        collection.update(proposed[part], truth[part], classes[part], things[part])
    expected = {
        "ari": adjusted_rand_index(proposed, truth),
        "fg": foreground_ari(proposed, truth, things),
        "mbo_i": mean_best_overlap(proposed, truth, things),
        "mbo_c": mean_best_overlap(proposed, truth, things, classes),
        "loc": correct_localization(proposed, truth, things),
    }
    assert [int(values.isnan().sum()) for values in expected.values()] == [1, 3, 3, 3, 3]
    for name, value in collection.compute().items():
        assert value.dtype == torch.float64
        assert float(value) == pytest.approx(float(expected[name].nanmean()), abs=1e-14)
    collection.reset()
    collection.update(proposed[2:3], truth[2:3], classes[2:3], things[2:3])
    assert all(value.isnan() for value in collection.compute().values())


def test_states_of_processes_merge_by_number_of_images() -> None:
    proposed, truth, classes, things = random_maps(4, maps=7)
    metrics = []
    for part in (slice(0, 2), slice(2, 7)):  # of different sizes: a mean of means would be wrong
        metric = MeanBestOverlap()
        metric.update(proposed[part], truth[part], classes[part], things[part])
        metrics.append(metric)
    metrics[0].merge_state(metrics[1])
    expected = float(mean_best_overlap(proposed, truth, things).nanmean())
    assert float(metrics[0].compute()) == pytest.approx(expected, abs=1e-14)


def test_unfit_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"predicted must be integers \[..., H, W\]; got torch.float32"):
        adjusted_rand_index(SCENE.float(), SCENE)
    with pytest.raises(ValueError, match=r"one shape; got \[2, 4\] and \[4, 4\]: resize"):
        correct_localization(SCENE[:2], SCENE, THINGS)
    with pytest.raises(ValueError, match=r"segments must be 0 \(unlabelled\) or above; got -1"):
        adjusted_rand_index(SCENE, SCENE - 1)
    for measure in (foreground_ari, mean_best_overlap, correct_localization):
        with pytest.raises(ValueError, match="a value for each id up to"):
            measure(SCENE, SCENE, THINGS[:2])


def test_base_metric_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        DiscoveryMetric()  # type: ignore[abstract]
