"""Tokens that are kept equal those of the backbone, in any order of scenes, and within the bound."""

from typing import Any

import pytest
import torch

from visionattn.data.scenes import SceneBatch
from visionattn.objects.token_cache import TokenCache

BYTES = 2 * 3 * 4 * 4  # of the two layers of a scene


class Backbone:
    """Tokens of two layers that are functions of the image; it counts the images it has seen."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> dict[int, torch.Tensor]:
        self.seen += len(images)
        tokens = images[:, 0, :3, :4]
        return {0: tokens.clone(), 1: 2 * tokens}


def scenes(*numbers: int) -> SceneBatch:
    images = torch.stack([torch.full((3, 4, 4), float(number)) for number in numbers])
    nothing = torch.empty(len(numbers), 0)
    return SceneBatch(images, nothing, nothing, nothing, [f"{number}.jpg" for number in numbers], [])


@pytest.mark.parametrize(("size", "seen"), [(0, 7), (4 * BYTES, 4), (3 * BYTES, 5)])
def test_the_backbone_runs_once_for_scenes_that_fit(size: int, seen: int) -> None:
    backbone: Any = Backbone()
    cache = TokenCache(backbone, size)
    for batch in (scenes(0, 1), scenes(2, 1), scenes(3), scenes(2, 3)):
        tokens = cache(batch)
        for layer, expected in Backbone()(batch.image).items():
            assert torch.equal(tokens[layer], expected)
    assert backbone.seen == seen
