"""Binding scores of heads, against their definition on weights that are computed without the recorder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from tests.analysis.dense_attention import NETWORKS, Dense, PatchNet, build, dense_weights
from visionattn.analysis.head_images import HeadBatch
from visionattn.analysis.heads import head_layers
from visionattn.analysis.scores import measure_scores
from visionattn.data.scenes import SceneBatch
from visionattn.errors import UserError
from visionattn.evaluation.source import load_model
from visionattn.layers.mixers.full import FullAttention2d
from visionattn.objects.head_binding import measure_binding, open_binding_scenes
from visionattn.probing.scenes import ProbingScenes


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def as_scenes(images: Tensor, blocks: Any, size: int = 2) -> list[SceneBatch]:
    """Return images in batches, with rectangles of whole patches as their segments."""
    segments, classes, things = blocks(len(images))
    segments = segments[:, : images.shape[2], : images.shape[3]]
    parts = zip(*(x.split(size) for x in (images, segments, classes, things)), strict=True)
    return [SceneBatch(*part, [""] * len(part[0]), []) for part in parts]


def expected_binding(dense: Dense, head: int, scenes: list[SceneBatch]) -> float:
    """Compute the definition for one query after the other."""
    labels = torch.cat([scene.segments[:, ::4, ::4] for scene in scenes]).flatten(1)
    scores = []
    for weights, segments in zip(dense.patches[:, head].clamp(min=0), labels.tolist(), strict=True):
        for row, own, seen in zip(weights, dense.keys.tolist(), (dense.patches != 0).any(0).any(0), strict=True):
            others = [key for key in range(len(segments)) if key != own and seen[key]]
            same = [key for key in others if segments[key] == segments[own]]
            if segments[own] > 1 and 0 < len(same) < len(others):  # segment 1 is the background
                scores.append(float(row[same].sum() / row[others].sum()) / (len(same) / len(others)))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_equal_their_definition(name: str, blocks: Any) -> None:
    network, images = build(name, 3)
    scenes = as_scenes(images, blocks)
    found = measure_binding(network, head_layers(network), scenes)
    dense = dense_weights(network, images)
    assert len(found) == sum(layer.patches.shape[1] for layer in dense)
    for (number, head), values in found.items():
        assert values == {"binding": pytest.approx(expected_binding(dense[number], head, scenes), rel=1e-9)}


def attention_to_colours(scale: float) -> PatchNet:
    """Return a network whose queries and keys are the colours of patches, times a scale."""
    network: Any = PatchNet(FullAttention2d(8, 1), 8)
    for values in network.parameters():
        values.data.zero_()
    for channel in range(3):
        network.patchify.weight.data[channel, channel] = 1 / 16
    network.layer.qkv.weight.data[:16] = scale * torch.cat([torch.eye(8), torch.eye(8)])
    return network.eval()


def test_heads_that_see_objects_bind_them_and_uniform_heads_do_not(blocks: Any) -> None:
    segments = blocks(4).segments
    colours = torch.nn.functional.normalize(torch.randn(6, 3), dim=-1)
    scenes = as_scenes(colours[segments].permute(0, 3, 1, 2), blocks)
    network = attention_to_colours(0.0)
    assert measure_binding(network, head_layers(network), scenes)[0, 0]["binding"] == pytest.approx(1, rel=1e-5)
    network = attention_to_colours(30.0)
    found = measure_binding(network, head_layers(network), scenes)
    shares = []
    for labels in segments[:, ::4, ::4].flatten(1):
        for label in labels[labels > 1]:
            shares += [63 / (int((labels == label).sum()) - 1)] if (labels == label).sum() > 1 else []
    assert found[0, 0]["binding"] == pytest.approx(sum(shares) / len(shares), rel=1e-2)


def test_two_runs_are_equal(blocks: Any) -> None:
    network = timm.create_model("nat_pico").eval()
    scenes = as_scenes(torch.randn(3, 3, 32, 32), blocks)
    layers = head_layers(network)
    scores = measure_scores(network, layers, [HeadBatch(scenes[0].image, None, [])])
    found = measure_binding(network, layers, scenes)
    assert measure_binding(network, layers, iter(scenes)) == found
    assert measure_scores(network, layers, [HeadBatch(scenes[0].image, None, [])]) == scores  # tables are shared


def test_heads_have_no_score_without_objects(blocks: Any) -> None:
    network = attention_to_colours(1.0)
    scenes = [scene._replace(things=scene.things & False) for scene in as_scenes(torch.randn(2, 3, 32, 32), blocks)]
    assert measure_binding(network, head_layers(network), scenes) == {(0, 0): {"binding": None}}
    with pytest.raises(UserError, match="no scenes"):
        measure_binding(network, head_layers(network), [])


HALVES = np.arange(32)[:, None] // 16 + np.zeros((32, 32), np.int64)
"""0 in the upper half, 1 in the lower one."""


def save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def write_coco(root: Path) -> None:
    for name in ("a", "b"):
        save(root / "val2017" / f"{name}.jpg", np.random.default_rng(0).integers(0, 255, (32, 32, 3)))
        colours = np.zeros((32, 32, 3))
        colours[..., 0] = HALVES + 1
        save(root / "annotations" / "panoptic_val2017" / f"{name}.png", colours)
    segments = [{"id": number, "category_id": number, "iscrowd": 0} for number in (1, 2)]
    table = {
        "images": [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate("ab")],
        "annotations": [
            {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
            for number, name in enumerate("ab")
        ],
        "categories": [{"id": number, "name": str(number), "isthing": number - 1} for number in (1, 2)],
    }
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(table))


def write_folder(root: Path) -> None:
    for name in ("a", "b"):
        save(root / "images" / f"{name}.jpg", np.random.default_rng(0).integers(0, 255, (32, 32, 3)))
        save(root / "instances" / f"{name}.png", HALVES)


@pytest.mark.parametrize("write", [write_coco, write_folder])
def test_scenes_are_opened_for_a_model(write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    loaded = load_model("vit_nano_patch4_32.cifar10")
    options = ProbingScenes(root=str(tmp_path), num_workers=0)
    scenes = open_binding_scenes(loaded, options)
    (batch,) = scenes
    assert (len(scenes), len(batch.image), batch.image.shape[-1]) == (1, 2, 32)
    assert batch.image.min() < 0  # normalised
    (only,), (again,) = open_binding_scenes(loaded, options, limit=1), scenes
    assert len(only.image) == 1
    assert torch.equal(again.image, batch.image)
    assert open_binding_scenes(loaded, tmp_path).data.name == scenes.data.name
    found = measure_binding(loaded.model, head_layers(loaded.model), scenes)
    assert all(values["binding"] is not None for values in found.values())


def test_options_of_scenes_are_kept() -> None:
    loaded = load_model("vit_nano_patch4_32.cifar10")
    options = ProbingScenes(name="synthetic", val_length=6, batch_size=2, num_workers=0)
    assert len(open_binding_scenes(loaded, options)) == 3
    assert len(open_binding_scenes(loaded, options, limit=3)) == 2


@pytest.mark.slow
def test_heads_of_a_trained_model_bind_real_objects(coco_panoptic_root: Path) -> None:
    loaded = load_model("vit_nano_patch4_32.cifar10")
    found = measure_binding(loaded.model, head_layers(loaded.model), open_binding_scenes(loaded, coco_panoptic_root))
    assert max(values["binding"] for values in found.values()) > 1.3
