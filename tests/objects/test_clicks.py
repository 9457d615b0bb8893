"""Clicks on objects, and the layers whose maps are drawn."""

import torch

from visionattn.objects.clicks import choose_layers, choose_patch
from visionattn.objects.patches import PatchLabels


def test_layers_are_spread_and_include_the_best():
    assert choose_layers(range(3), 1) == [0, 1, 2]
    assert choose_layers(range(12), 8) == [0, 3, 6, 8, 11]
    assert choose_layers(range(12), 7) == [0, 3, 7, 8, 11]
    assert choose_layers([4], 4) == [4]


def test_patch_is_in_the_middle_of_the_largest_object():
    instances = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 1, 2, 2, 2, 1, 2, 2, 2, 3]])
    purity = torch.ones(1, 16)
    labels = PatchLabels(instances, purity, instances, instances > 1)
    assert choose_patch(labels, (4, 4)) == (2, (2, 1))
    purity[0, 9] = 0.5
    assert choose_patch(labels, (4, 4))[1] != (2, 1)
    nothing = PatchLabels(instances, purity, instances, instances > 9)
    assert choose_patch(nothing, (4, 4))[0] == 2
    unlabelled = torch.zeros_like(instances)
    assert choose_patch(PatchLabels(unlabelled, purity, unlabelled, unlabelled > 0), (4, 4))[0] == 0
