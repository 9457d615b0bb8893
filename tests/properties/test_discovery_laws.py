"""Laws of the measures of object discovery and segmentation, on drawn maps of ids."""

from itertools import combinations
from typing import Any, NamedTuple

import pytest
import torch
from holding import holds_for
from hypothesis import strategies as st
from torch import Tensor

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
from visionattn.metrics.semantic import InstanceIoU, SemanticScores, count_overlaps

MAX_ID = 4


class Scenes(NamedTuple):
    """Two images: proposed ids, true ids, and what the true ids stand for."""

    predicted: Tensor
    segments: Tensor
    classes: Tensor
    things: Tensor


@st.composite
def scenes(draw: Any, labelled: bool = False) -> Scenes:
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 5))

    def maps(low: int, high: int, *shape: int) -> Tensor:
        count = int(torch.tensor(shape).prod())
        return torch.tensor(draw(st.lists(st.integers(low, high), min_size=count, max_size=count))).view(shape)

    segments = maps(int(labelled), MAX_ID, 2, height, width)
    things = maps(0, 1, 2, MAX_ID + 1).bool()
    classes = maps(0, 2, 2, MAX_ID + 1)
    things[:, 0], classes[:, 0] = False, -1
    return Scenes(maps(-1, MAX_ID, 2, height, width), segments, classes, things)


def every_measure(scene: Scenes) -> dict[str, Tensor]:
    predicted, segments, classes, things = scene
    return {
        "ari": adjusted_rand_index(predicted, segments),
        "fg_ari": foreground_ari(predicted, segments, things),
        "mbo_i": mean_best_overlap(predicted, segments, things),
        "mbo_c": mean_best_overlap(predicted, segments, things, classes),
        "corloc": correct_localization(predicted, segments, things),
    }


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12, equal_nan=True, msg=name)


def relabel(ids: Tensor, numbers: list[int]) -> Tensor:
    """Renumber ids from 0 on; negative ids stay."""
    return torch.where(ids < 0, ids, torch.tensor(numbers)[ids.clamp(min=0)])


@holds_for(scenes())
def test_measures_are_within_bounds(scene: Scenes) -> None:
    found = every_measure(scene)
    _, segments, _, things = scene
    for name, values in found.items():
        known = values[~values.isnan()]
        assert (known <= 1).all(), name
        assert (known >= (-1 if "ari" in name else 0)).all(), name
    has_object = torch.stack([things[i, segments[i].flatten()].any() for i in range(2)])
    for name in ("fg_ari", "mbo_i", "mbo_c", "corloc"):
        assert torch.equal(found[name].isnan(), ~has_object), name
    assert torch.equal(found["ari"].isnan(), ~(segments > 0).flatten(1).any(1))


@holds_for(scenes(), st.permutations(range(MAX_ID + 1)), st.permutations(range(1, MAX_ID + 1)))
def test_measures_do_not_depend_on_segment_numbers(scene: Scenes, proposed: list[int], true: list[int]) -> None:
    order = torch.tensor([0, *true]).argsort()
    renamed = Scenes(
        relabel(scene.predicted, proposed),
        relabel(scene.segments, [0, *true]),
        scene.classes[:, order],
        scene.things[:, order],
    )
    same(every_measure(renamed), every_measure(scene))


@holds_for(scenes(), st.sampled_from([(-1,), (-2,), (-2, -1)]), st.booleans())
def test_measures_of_a_mirrored_image_are_equal(scene: Scenes, axes: tuple[int, ...], turn: bool) -> None:
    moved = [x.flip(axes).transpose(-1, -2) if turn else x.flip(axes) for x in scene[:2]]
    same(every_measure(Scenes(*moved, *scene[2:])), every_measure(scene))


@holds_for(scenes())
def test_true_segments_have_perfect_measures(scene: Scenes) -> None:
    for name, values in every_measure(scene._replace(predicted=scene.segments)).items():
        if name != "mbo_c":  # objects of one class are several segments
            assert (values[~values.isnan()] == 1).all(), name
    by_class = scene._replace(predicted=scene.classes.gather(1, scene.segments.flatten(1)).view_as(scene.segments))
    if bool(scene.things[:, 1:].all()):
        assert (every_measure(by_class)["mbo_c"].nan_to_num(1) == 1).all()


@holds_for(scenes(), st.integers(-1, MAX_ID))
def test_unlabelled_pixels_do_not_count(scene: Scenes, proposed: int) -> None:
    row = torch.zeros_like(scene.segments[:, :1])
    more = scene._replace(
        predicted=torch.cat([scene.predicted, row + proposed], 1), segments=torch.cat([scene.segments, row], 1)
    )
    found, expected = every_measure(more), every_measure(scene)
    for name in ("ari", "fg_ari", "mbo_i", "mbo_c"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12, equal_nan=True, msg=name)


@holds_for(scenes(labelled=True))
def test_ari_counts_pairs_and_is_symmetric(scene: Scenes) -> None:
    for predicted, segments in zip(
        scene.predicted.flatten(1).tolist(), scene.segments.flatten(1).tolist(), strict=True
    ):
        pairs = list(combinations(range(len(segments)), 2))
        together = [(predicted[i] == predicted[j], segments[i] == segments[j]) for i, j in pairs]
        both, by_predicted, by_segment = (
            sum(1 for pair in together if chosen(pair)) for chosen in (all, lambda pair: pair[0], lambda pair: pair[1])
        )
        chance = by_predicted * by_segment / len(pairs) if pairs else 0
        scale = (by_predicted + by_segment) / 2 - chance
        expected = (both - chance) / scale if scale else 1
        size = 1, 1, len(segments)
        maps = torch.tensor(predicted).view(size), torch.tensor(segments).view(size)
        assert adjusted_rand_index(*maps).item() == pytest.approx(expected, abs=1e-12)
        turned = adjusted_rand_index(maps[1], maps[0] + 2)  # ids of a true map count from 1
        assert turned.item() == pytest.approx(expected, abs=1e-12)


@holds_for(scenes())
def test_finer_proposal_never_overlaps_better_than_its_union(scene: Scenes) -> None:
    """One segment of everything overlaps each object by its share of the labelled positions."""
    whole = mean_best_overlap(torch.zeros_like(scene.predicted), scene.segments, scene.things)
    for value, segments, things in zip(whole, scene.segments, scene.things, strict=True):
        sizes = segments.flatten().bincount(minlength=MAX_ID + 1)
        chosen = things & (sizes > 0)
        expected = (sizes / sizes[1:].sum())[chosen].double().mean()
        torch.testing.assert_close(value, expected, check_dtype=False, rtol=1e-6, atol=1e-6, equal_nan=True)


@holds_for(scenes())
def test_mean_over_images_skips_undefined_ones(scene: Scenes) -> None:
    values = every_measure(scene)
    metrics = {
        "ari": ARI(),
        "fg_ari": ForegroundARI(),
        "mbo_i": MeanBestOverlap(),
        "mbo_c": MeanBestOverlap(by_class=True),
        "corloc": CorLoc(),
    }
    for name, metric in metrics.items():
        assert isinstance(metric, DiscoveryMetric)
        for i in range(2):  # one image at a time
            metric.update(*(x[i : i + 1] for x in scene))
        torch.testing.assert_close(metric.compute(), values[name].nanmean(), rtol=0, atol=1e-12, equal_nan=True)


@holds_for(scenes())
def test_mean_iou_of_pixel_sized_patches_equals_the_definition(scene: Scenes) -> None:
    grid = tuple(scene.segments.shape[1:])
    predicted = scene.predicted.clamp(min=0).flatten(1)
    semantic, instance = SemanticScores(MAX_ID + 1), InstanceIoU()
    overlaps = count_overlaps(scene, predicted, grid, MAX_ID + 1)  # type: ignore[arg-type]
    for measure in (semantic, instance):
        measure.update(scene, overlaps)  # type: ignore[arg-type]
    truth = scene.classes.gather(1, scene.segments.flatten(1)).flatten()
    known, flat = truth >= 0, predicted.flatten()
    rates = [
        float(((truth == c) & (flat == c)).sum() / ((truth == c) | ((flat == c) & known)).sum())
        for c in truth[known].unique().tolist()
    ]
    assert semantic.compute() == (pytest.approx(sum(rates) / len(rates), abs=1e-6) if rates else None)
    found = instance.compute()
    assert found is None or 0 <= found <= 1
    perfect = InstanceIoU()
    perfect.update(scene, count_overlaps(scene, scene.segments.flatten(1), grid, MAX_ID + 1))  # type: ignore[arg-type]
    assert perfect.compute() in (None, 1)
