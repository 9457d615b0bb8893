"""Mean IoU, on small hand-made scenes."""

from types import SimpleNamespace

import pytest
import torch

from visionattn.metrics.semantic import InstanceIoU, SemanticScores, count_overlaps

# Two images of 2 × 4 pixels in two patches; the last pixel of the first belongs to no segment.
SCENES = SimpleNamespace(
    segments=torch.tensor([[[1, 1, 2, 2], [1, 1, 1, 0]], [[1, 1, 1, 1], [3, 3, 3, 3]]]),
    classes=torch.tensor([[-1, 0, 1, -1], [-1, 2, -1, 0]]),
    things=torch.tensor([[False, True, True, False], [False, False, False, True]]),
)
GRID = (1, 2)


def test_overlaps_count_pixels():
    overlaps = count_overlaps(SCENES, torch.tensor([[0, 1], [1, 1]]), GRID, 3)
    assert overlaps[0].tolist() == [[0, 1, 0], [4, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert overlaps[1].tolist() == [[0, 0, 0], [0, 4, 0], [0, 0, 0], [0, 4, 0]]


def test_semantic_iou_is_the_mean_over_classes_that_occur():
    metric = SemanticScores(5)
    assert metric.compute() is None
    for number, predicted in enumerate(torch.tensor([[0, 1], [0, 4]])):
        scenes = SimpleNamespace(**{key: value[number : number + 1] for key, value in vars(SCENES).items()})
        metric.update(scenes, count_overlaps(scenes, predicted[None], GRID, 5))
    # Class 0: 5 pixels in the first image, 4 correct, and 4 in the second, 2 correct; also predicted for 2 of class 2.
    # Class 1: 2 pixels, both correct; also predicted for one of class 0. Class 2: 4 pixels, none correct. Class 4 does
    # not occur.
    assert metric.compute() == pytest.approx((6 / 11 + 2 / 3 + 0) / 3)


def test_instance_iou_is_the_mean_over_objects_and_their_queries():
    metric = InstanceIoU()
    assert metric.compute() is None
    metric.update(SCENES, count_overlaps(SCENES, torch.tensor([[3, 1], [2, 2]]), GRID, 4))
    # In the second image, query 2 fits either segment equally, half of it; the other segment gets no query.
    first = 4 / 5 + 2 / 3
    assert metric.compute() in (pytest.approx((first + 0.5) / 3), pytest.approx((first + 0.0) / 3))


def test_perfect_predictions_have_an_iou_of_1():
    scenes = SimpleNamespace(
        segments=torch.tensor([[[1, 1, 2, 2]]]),
        classes=torch.tensor([[-1, 3, 0]]),
        things=torch.tensor([[0, 0, 1]]) > 0,
    )
    semantic, instance = SemanticScores(4), InstanceIoU()
    semantic.update(scenes, count_overlaps(scenes, torch.tensor([[3, 0]]), GRID, 4))
    instance.update(scenes, count_overlaps(scenes, torch.tensor([[5, 6]]), GRID, 9))
    assert semantic.compute() == instance.compute() == 1


def test_scores_of_pixels_leave_out_unlabelled_pixels_and_classes_that_do_not_occur():
    scores = SemanticScores(4)
    assert (scores.compute(), scores.pixel_accuracy, scores.mean_accuracy) == (None, None, None)
    scores.update_pixels(torch.tensor([[0, 0, 2], [2, -1, 2]]), torch.tensor([[0, 3, 2], [2, 0, 0]]))
    # Class 3 is predicted once and occurs nowhere; the pixel without a label does not count as a wrong 0.
    assert scores.pixels.tolist() == [2, 0, 3, 0]
    assert scores.iou.nan_to_num(-1).tolist() == pytest.approx([1 / 3, -1, 2 / 3, -1])
    assert scores.accuracy.nan_to_num(-1).tolist() == pytest.approx([1 / 2, -1, 2 / 3, -1])
    assert scores.compute() == pytest.approx(1 / 2)
    assert scores.pixel_accuracy == pytest.approx(3 / 5)
    assert scores.mean_accuracy == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_scores_of_pixels_and_of_patches_agree():
    predicted = torch.tensor([[0, 1], [0, 4]])
    patches, pixels = SemanticScores(5), SemanticScores(5)
    patches.update(SCENES, count_overlaps(SCENES, predicted, GRID, 5))
    labels = torch.stack([classes[ids] for classes, ids in zip(SCENES.classes, SCENES.segments, strict=True)])
    pixels.update_pixels(labels, predicted[:, None].repeat_interleave(2, 2).expand(-1, 2, -1))
    assert pixels.iou.nan_to_num(-1).tolist() == patches.iou.nan_to_num(-1).tolist()
