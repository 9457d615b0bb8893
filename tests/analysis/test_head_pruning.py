"""Pruning curves: orders of heads, points, areas."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from visionattn.analysis import patching
from visionattn.analysis.effects import measure_set
from visionattn.analysis.head_images import HeadBatch
from visionattn.analysis.heads import Head, choose_heads, head_layers
from visionattn.analysis.patching import Unfinished, head_means
from visionattn.analysis.pruning import measure_curves, order_heads, random_orders


@pytest.fixture
def network() -> nn.Module:
    """Build a ViT of 9 heads."""
    model = timm.create_model("vit_nano_patch4_32", num_classes=5, depth=3)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def batches_of(num_classes: int = 5) -> list[HeadBatch]:
    return [
        HeadBatch(torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2]) if num_classes else None, list("abc"))
        for _ in range(2)
    ]


def test_heads_without_a_figure_come_last() -> None:
    values = {(0, 0): {"direct": None}, (0, 1): {"direct": 1.0}, (1, 0): {"direct": 3.0}, (1, 1): {"direct": 1.0}}
    assert order_heads(values, "direct") == [(1, 0), (0, 1), (1, 1), (0, 0)]
    assert order_heads(values, "direct", descending=False) == [(0, 1), (1, 1), (1, 0), (0, 0)]


def test_random_orders_are_permutations_of_a_seed() -> None:
    heads: list[Head] = [(layer, head) for layer in range(3) for head in range(4)]
    orders = random_orders(heads, 4, seed=1)
    assert orders == random_orders(heads, 4, seed=1) != random_orders(heads, 4, seed=2)
    assert all(sorted(order) == heads for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_points_are_ablations_of_the_first_heads(network: nn.Module) -> None:
    layers, batches = head_layers(network), batches_of()
    heads = choose_heads(layers)
    means = head_means(network, layers, batches)
    orders = {"forwards": heads, "backwards": heads[::-1]}
    curves = measure_curves(network, layers, orders, batches, points=4, means=means)
    for name, curve in curves.items():
        assert [point["num_heads"] for point in curve.points] == [0, 3, 6, 9]
        for point in curve.points:
            expected = measure_set(network, layers, orders[name][: point["num_heads"]], batches, means=means)
            assert {key: point[key] for key in expected} == pytest.approx(expected, abs=1e-6)
        loss = [point["loss"] for point in curve.points]
        assert curve.area["loss"] == pytest.approx((loss[0] / 2 + loss[1] + loss[2] + loss[3] / 2) / 3)
    assert curves["forwards"].points[-1] == curves["backwards"].points[-1]
    assert curves["forwards"].to_dict()["order"][:2] == ["0.0", "0.1"]


def test_more_points_than_heads_are_one_per_head(network: nn.Module) -> None:
    layers = head_layers(network)
    curves = measure_curves(network, layers, {"some": [(0, 1), (2, 0)]}, batches_of(), points=11, ablation="zero")
    assert [point["num_heads"] for point in curves["some"].points] == [0, 1, 2]


def test_curve_of_features_has_their_area(network: nn.Module) -> None:
    network.reset_classifier(0)  # type: ignore[operator]
    layers = head_layers(network)
    curve = measure_curves(network, layers, {"one": [(0, 1)]}, batches_of(0), ablation="zero")["one"]
    assert curve.points[0]["d_features"] == 0 < curve.points[1]["d_features"]
    assert curve.area == {"d_features": pytest.approx(curve.points[1]["d_features"] / 2)}


def test_curves_resume(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "SAVE_SECONDS", 0.0)
    layers, batches = head_layers(network), batches_of()
    orders = {"forwards": choose_heads(layers), "random": random_orders(choose_heads(layers), 1)[0]}
    unfinished = Unfinished(tmp_path / "curves.safetensors", "")

    def unreadable() -> object:
        yield batches[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        measure_curves(network, layers, orders, unreadable(), points=3, ablation="zero", unfinished=unfinished)
    resumed = measure_curves(network, layers, orders, batches, points=3, ablation="zero", unfinished=unfinished)
    assert resumed == measure_curves(network, layers, orders, batches, points=3, ablation="zero")


def test_curves_need_points_and_heads(network: nn.Module) -> None:
    for orders, points in (({"none": []}, 3), ({}, 3), ({"one": [(0, 0)]}, 1)):
        with pytest.raises(ValueError, match="pruning curves need"):
            measure_curves(network, head_layers(network), orders, batches_of(), points=points, ablation="zero")
