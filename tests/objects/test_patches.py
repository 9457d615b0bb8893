"""Labels of patches, on small hand-made scenes."""

from types import SimpleNamespace

import pytest
import torch

from visionattn.metrics.semantic import count_pixels
from visionattn.objects.patches import label_patches, sample_patches

SEGMENTS = torch.tensor(
    [
        [1, 1, 2, 2],
        [1, 2, 2, 2],
        [0, 0, 1, 2],
        [0, 3, 1, 2],
    ]
)[None]
CLASSES = torch.tensor([[-1, 7, 4, 5]])
THINGS = torch.tensor([[False, False, True, True]])
SCENE = SimpleNamespace(segments=SEGMENTS, classes=CLASSES, things=THINGS)


def test_label_is_the_segment_with_most_pixels():
    labels = label_patches(SCENE, (2, 2))
    # In the last patch, segments 1 and 2 have two pixels each; in the third, most pixels have no segment.
    assert labels.instances.tolist() == [[1, 2, 0, 1]]
    assert labels.purity.tolist() == [[0.75, 1.0, 0.75, 0.5]]
    assert labels.classes.tolist() == [[7, 4, -1, 7]]
    assert labels.things.tolist() == [[False, True, False, False]]


def test_impure_patches_get_no_label():
    labels = label_patches(SCENE, (2, 2), min_purity=0.75)
    assert labels.instances.tolist() == [[1, 2, 0, 0]]
    assert labels.classes.tolist() == [[7, 4, -1, -1]]
    assert label_patches(SCENE, (2, 2), min_purity=1.0).instances.tolist() == [[0, 2, 0, 0]]


def test_pairs_count_two_labelled_patches():
    pairs = label_patches(SCENE, (2, 2)).pairs()
    assert pairs.counted[0].nonzero().tolist() == [[0, 1], [0, 3], [1, 0], [1, 3], [3, 0], [3, 1]]
    assert (pairs.same & pairs.counted)[0].nonzero().tolist() == [[0, 3], [3, 0]]
    assert not pairs.foreground.any()

    things = SimpleNamespace(segments=SEGMENTS, classes=CLASSES, things=torch.tensor([[False, True, True, True]]))
    pairs = label_patches(things, (2, 2)).pairs()
    assert torch.equal(pairs.foreground, pairs.counted)


def test_grid_need_not_divide_the_image():
    counts = count_pixels(SEGMENTS[:, :3], (2, 3), 4)
    # Rows 0 and 1, then 2; columns 0 and 1, then 2, then 3.
    assert counts.tolist() == [
        [[0, 3, 1, 0], [0, 0, 2, 0], [0, 0, 2, 0], [2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]],
    ]


@pytest.mark.parametrize("count", [4, 9])
def test_sampling_draws_labelled_patches_first(blocks, count):
    scenes = blocks(3)
    scenes.segments[0, :, :16] = 0
    labels = label_patches(scenes, (4, 4))
    index = sample_patches(labels, count, torch.Generator().manual_seed(1))
    assert index.shape == (3, count)
    assert all(len(set(row)) == count and row == sorted(row) for row in index.tolist())
    assert (labels.take(index).instances > 0).sum(1).tolist() == [min(count, 8), count, count]
    assert sample_patches(labels, 16, torch.Generator()) is None
