"""Training of probes: on features that encode the object of a patch, on others, and what it keeps in memory."""

import weakref
from types import SimpleNamespace

import pytest
import torch

from kernels.bench import binding as bench
from kernels.bench import report
from visionattn.data.scenes import SceneData
from visionattn.objects.binding import BindingProbes, ProbeTraining
from visionattn.objects.patches import label_patches
from visionattn.objects.probes import PROBES, RunningNorm

GRID, DIM, PREFIX = (8, 8), 16, 2
LAYOUT = SimpleNamespace(dim=DIM, grid=GRID, num_prefix_tokens=PREFIX)


def identity_features(scenes, draws, shuffled=False):
    """Make tokens [B, 2 + 64, D]: a random code for each segment of each image, with noise."""
    instances = label_patches(scenes, GRID).instances
    if shuffled:
        instances = instances.gather(1, torch.rand(instances.shape, generator=draws).argsort(1))
    codes = torch.randn(*scenes.classes.shape, DIM, generator=draws)
    tokens = codes.gather(1, instances[..., None].expand(-1, -1, DIM))
    tokens = 5 + 3 * (tokens + 0.1 * torch.randn(tokens.shape, generator=draws))
    return torch.cat([torch.randn(len(tokens), PREFIX, DIM, generator=draws), tokens], dim=1)


def test_probes_find_objects_only_in_features_that_encode_them():
    scenes = SceneData("synthetic", image_size=32, length=160, val_length=64, batch_size=16, num_workers=0, seed=0)
    scenes.setup("fit")
    draws = torch.Generator().manual_seed(0)
    training = ProbeTraining(lr=3e-2, rank=32)
    probes = BindingProbes({"built": LAYOUT, "shuffled": LAYOUT}, ("quadratic", "cosine"), 8, training)

    def backbone(batch):
        return {name: identity_features(batch, draws, name == "shuffled") for name in probes.layers}

    train = list(scenes.train_dataloader())
    for epoch in range(16):
        for batch in train:
            probes.train_step(backbone(batch), batch, calibrate=epoch == 15)
    for batch in scenes.val_dataloader():
        probes.evaluate_step(backbone(batch), batch)
    found = {(result.layer, result.probe): result.pairs for result in probes.results()}
    assert found["built", "quadratic"].accuracy >= 0.99
    assert found["built", "quadratic"].balanced_accuracy >= 0.99
    assert found["built", "cosine"].accuracy >= 0.99
    for probe in ("quadratic", "cosine"):
        rates = found["shuffled", probe]
        assert rates.accuracy <= max(rates.share_different, 1 - rates.share_different) + 0.02
        assert rates.balanced_accuracy <= 0.52
        assert abs(rates.auc - 0.5) <= 0.05


def test_memory_holds_the_features_of_one_batch(blocks, monkeypatch):
    held: list[weakref.ref[torch.Tensor]] = []
    normalize = RunningNorm.forward

    def spy(self, tokens):
        normed = normalize(self, tokens)
        held.extend(map(weakref.ref, (tokens, normed)))
        return normed

    monkeypatch.setattr(RunningNorm, "forward", spy)
    scenes, draws = blocks(4), torch.Generator().manual_seed(0)
    probes = BindingProbes({0: LAYOUT, 1: LAYOUT}, PROBES, 3, ProbeTraining(rank=4))
    for step in range(4):
        features = {layer: identity_features(scenes, draws) for layer in probes.layers}
        held.extend(map(weakref.ref, features.values()))
        if step < 2:
            probes.train_step(features, scenes, calibrate=True)
        else:
            probes.evaluate_step(features, scenes)
        del features
        assert len(held) == 4 * (step + 1)
        assert all(tensor() is None for tensor in held)


def test_layers_of_different_widths_and_grids_train_together(blocks):
    scenes = blocks(6)
    draws = torch.Generator().manual_seed(0)
    layouts = {
        0: SimpleNamespace(dim=8, grid=(8, 8), num_prefix_tokens=0),
        1: SimpleNamespace(dim=12, grid=(4, 4), num_prefix_tokens=0),
        2: SimpleNamespace(dim=8, grid=(8, 8), num_prefix_tokens=0),
    }
    probes = BindingProbes(layouts, PROBES, 3, ProbeTraining(patches=10, rank=4))
    features = {0: torch.randn(6, 64, 8, generator=draws), 1: torch.randn(6, 16, 12, generator=draws)}
    features[2] = features[0].clone()
    losses = [probes.train_step(features, scenes, calibrate=True) for _ in range(30)]
    assert losses[-1] < losses[0]
    probes.evaluate_step(features, scenes)
    results = probes.results()
    assert [(result.layer, result.probe) for result in results] == [(n, name) for n in range(3) for name in PROBES]
    assert {result.pairs.num_pairs for result in results} == {6 * 45}
    by_place = {(result.layer, result.probe): result for result in results}
    assert by_place[0, "diagonal"].num_parameters == 9
    assert by_place[1, "quadratic"].num_parameters == 4 * 12 + 1
    assert by_place[1, "quadratic_full"].num_parameters == 144 + 1
    assert by_place[1, "identity"].num_parameters == 32 * 13
    assert by_place[1, "cosine"].num_parameters == 0
    for name in ("linear", "diagonal", "quadratic_full", "cosine", "dot"):  # those that do not start at random
        assert by_place[0, name].pairs == by_place[2, name].pairs


def test_copy_of_one_layer_scores_as_all_layers_do(blocks):
    scenes = blocks(3)
    draws = torch.Generator().manual_seed(0)
    probes = BindingProbes({0: LAYOUT, 5: LAYOUT}, PROBES, 3, ProbeTraining(rank=4))
    features = {layer: identity_features(scenes, draws) for layer in probes.layers}
    probes.train_step(features, scenes)
    probes.evaluate_step(features, scenes)
    pairs = label_patches(scenes, GRID).pairs()
    single = probes.at(5)
    for result in probes.results():
        if result.layer == 5 and single.probe(result.probe).has_threshold:
            scores = single.score(result.probe, features[5])
            right = ((scores >= 0) == pairs.same)[pairs.counted]
            assert result.pairs.accuracy == pytest.approx(right.double().mean().item())
    assert single.classify("class", features[5]).shape == (3, 64, 3)
    with pytest.raises(KeyError):
        probes.at(1)


def test_seed_determines_the_probes(blocks):
    scenes, found = blocks(4), []
    for seed in (0, 0, 1):
        probes = BindingProbes({0: LAYOUT}, ("quadratic", "identity"), 3, ProbeTraining(patches=9, seed=seed))
        features = {0: identity_features(scenes, torch.Generator().manual_seed(0))}
        found.append([probes.train_step(features, scenes) for _ in range(3)])
    assert found[0] == found[1] != found[2]


def test_scenes_without_labels_do_not_train(blocks):
    scenes = blocks(2)._replace(segments=torch.zeros(2, 32, 32, dtype=torch.int64))
    probes = BindingProbes({0: LAYOUT}, PROBES, 3)
    features = {0: torch.randn(2, 66, DIM)}
    assert probes.train_step(features, scenes, calibrate=True) == 0
    probes.evaluate_step(features, scenes)
    assert all(result.pairs.accuracy is None for result in probes.results())


def test_features_must_be_finite(blocks):
    probes = BindingProbes({0: LAYOUT}, ("cosine",), 3)
    with pytest.raises(ValueError, match="features of the backbone are not finite"):
        probes.evaluate_step({0: torch.full((2, 66, DIM), torch.nan)}, blocks(2))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"patches": 1}, "patches must be at least 2, got 1"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be greater than 0"),
        ({"min_purity": 1.5}, "min_purity must be at least 0 and at most 1"),
    ],
)
def test_training_options_out_of_bounds_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        ProbeTraining(**option)


@pytest.mark.usefixtures("same_threads")
def test_benchmark_compares_scores_before_timing(monkeypatch, tmp_path, capsys):
    arguments = ["--quick", "--threads", "1", "--repeats", "1"]
    assert bench.main([*arguments, "--output", str(tmp_path / "binding.csv")]) == 0
    rows = report.read_rows(tmp_path / "binding.csv")
    directions = ["training", "evaluation"]
    assert [row["direction"] for row in rows] == [*directions, "forward", *directions, *directions]
    assert all(row["peak_mb"] for row in rows[:2])
    assert rows[2]["ratio_to_backbone"] == "1"

    monkeypatch.setattr(bench, "single_pair", lambda probe, layer, x, y: x @ y)
    assert bench.main(arguments) == 1
    assert "scores differ by" in capsys.readouterr().err
