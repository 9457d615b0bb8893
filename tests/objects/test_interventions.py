"""Interventions: what they change, and what stays bit-identical."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from visionattn.analysis.attention import record_attention, token_layers
from visionattn.objects.binding import BindingProbes, ProbeTraining
from visionattn.objects.interventions import (
    Correlation,
    blocks_of,
    inject,
    intervene,
    patch_attention,
    probe_subspace,
    random_subspace,
    shuffle,
)
from visionattn.objects.patches import label_patches
from visionattn.probing.frozen import FrozenBackbone

INSTANCES = torch.tensor([[1, 1, 2, 0, 2, 2], [3, 3, 3, 3, 1, 0]])


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, patch_size=8, depth=3, num_classes=0).eval()


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shuffle_permutes_the_share_of_patches():
    parts = torch.arange(60.0).view(2, 10, 3)
    for share, moved in ((0.0, 0), (0.1, 0), (0.5, 5), (1.0, 10)):
        changed = shuffle(share, draws())(parts)
        assert ((changed != parts).any(-1).sum(1) == moved).all()
        for before, after in zip(parts, changed, strict=True):
            assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))


def test_injection_moves_parts_to_the_mean_of_their_object():
    parts = torch.randn(2, 6, 3, dtype=torch.float64)
    assert torch.equal(inject(0.0, INSTANCES)(parts), parts)
    changed = inject(0.25, INSTANCES)(parts)
    mean = parts[0, [2, 4, 5]].mean(0)
    torch.testing.assert_close(changed[0, [2, 4, 5]], 0.75 * parts[0, [2, 4, 5]] + 0.25 * mean)
    torch.testing.assert_close(inject(1.0, INSTANCES)(parts)[1, :4], parts[1, :4].mean(0).expand(4, -1))
    assert torch.equal(changed[INSTANCES == 0], parts[INSTANCES == 0])


@pytest.mark.parametrize("change", [shuffle(0.0, draws()), inject(0.0, torch.ones(2, 16, dtype=torch.int64))])
def test_change_of_amount_0_leaves_outputs_identical(vit, change):
    images = torch.randn(2, 3, 32, 32)
    basis = random_subspace(8, 64, draws())
    with torch.no_grad():
        before = vit.forward_features(images)
        with intervene(vit.blocks[0], 1, basis, change):
            assert torch.equal(vit.forward_features(images), before)
        with intervene(vit.blocks[0], 1, basis, shuffle(1.0, draws())):
            assert not torch.equal(vit.forward_features(images), before)
        assert torch.equal(vit.forward_features(images), before)


def test_intervention_changes_only_the_subspace_of_patches(vit):
    images, basis = torch.randn(2, 3, 32, 32), random_subspace(8, 64, draws())
    found = {}
    vit.blocks[1].register_forward_hook(lambda module, inputs, output: found.update(before=inputs[0]))
    try:
        with torch.no_grad():
            vit.forward_features(images)
            plain = found["before"]
            with intervene(vit.blocks[0], 1, basis, shuffle(1.0, draws())):
                vit.forward_features(images)
    finally:
        vit.blocks[1]._forward_hooks.clear()
    delta = found["before"] - plain
    assert torch.equal(delta[:, :1], torch.zeros(2, 1, 64))
    torch.testing.assert_close(delta @ basis.T @ basis, delta, rtol=0, atol=1e-5)
    assert delta.abs().max() > 0.01


def test_probe_subspace_is_the_one_the_quadratic_probe_reads(blocks):
    scenes = blocks(4)
    layout = type("Layout", (), {"dim": 24, "grid": (8, 8), "num_prefix_tokens": 1})()
    probes = BindingProbes({0: layout, 1: layout}, ("quadratic",), 3, ProbeTraining(rank=5))
    features = {layer: torch.randn(4, 65, 24) * torch.linspace(1, 4, 24) for layer in (0, 1)}
    probes.train_step(features, scenes)
    single = probes.at(1)
    basis = probe_subspace(single)
    assert basis.shape == (5, 24)
    torch.testing.assert_close(basis @ basis.T, torch.eye(5), rtol=0, atol=1e-5)
    # The probe does not see the part outside the subspace, at equal mean and length; it sees the part inside.
    tokens = features[1]
    centred = tokens - tokens.mean(-1, keepdim=True)
    outside = centred - centred @ basis.T @ basis
    outside = outside - outside.mean(-1, keepdim=True)

    def at_equal_length(values):
        return values / values.std(-1, keepdim=True)

    weight = single.norm.to_tokens(single.probe("quadratic").weight)[0]
    assert (at_equal_length(outside) @ weight.T).abs().max() < 1e-4
    assert (at_equal_length(centred) @ weight.T).abs().max() > 0.1

    whole = BindingProbes({0: layout}, ("quadratic",), 3, ProbeTraining(rank=30)).at(0)
    with pytest.raises(ValueError, match="rank 30 reads all of width 24: choose a lower rank"):
        probe_subspace(whole)


def test_recorded_attention_is_that_of_queries_and_keys(vit):
    images = torch.randn(2, 3, 32, 32)
    backbone = FrozenBackbone(vit, "test_vit", None, norm_blocks=False)
    fused = [block.attn.fused_attn for block in vit.blocks]
    with record_attention({1: token_layers(vit)[2]}, patch_attention) as weights:
        features = backbone(images)
    assert [block.attn.fused_attn for block in vit.blocks] == fused
    attention = vit.blocks[2].attn
    with torch.no_grad():
        qkv = attention.qkv(vit.blocks[2].norm1(features[1])).view(2, 17, 3, attention.num_heads, -1)
        q, k, _ = qkv.permute(2, 0, 3, 1, 4)
        expected = F.softmax(q @ k.mT * attention.scale, dim=-1).mean(1)[:, 1:, 1:]
    torch.testing.assert_close(weights[1], expected)
    assert not attention.attn_drop._forward_hooks


def test_attention_of_dcal_is_recorded_without_glca():
    torch.manual_seed(0)
    model = timm.create_model("dcal_vit_nano", num_classes=0)
    backbone = FrozenBackbone(model, "dcal_vit_nano", None, norm_blocks=False)
    with record_attention(dict(enumerate(token_layers(model))), patch_attention) as weights:
        backbone(torch.randn(2, 3, 32, 32))
    assert [weights[number].shape for number in range(6)] == [(2, 64, 64)] * 6


def test_correlation_is_pearsons():
    x = torch.randn(3, 50, dtype=torch.float64)
    y = x + torch.randn(3, 50, dtype=torch.float64)
    correlation = Correlation()
    assert correlation.compute() is None
    for a, b in zip(x, y, strict=True):
        correlation.update(a, b)
    assert correlation.compute() == pytest.approx(np.corrcoef(x.flatten(), y.flatten())[0, 1])
    constant = Correlation()
    constant.update(torch.ones(4), torch.arange(4))
    assert constant.compute() is None


def test_interventions_need_a_vit(vit):
    assert len(blocks_of(vit, "test_vit")) == 3
    with pytest.raises(ValueError, match="test_convnext is no ViT"):
        blocks_of(timm.create_model("test_convnext"), "test_convnext")


def test_injection_helps_and_shuffling_hurts_a_probe_of_objects(blocks):
    scenes = blocks(8)
    labels = label_patches(scenes, (8, 8))
    codes = torch.randn(8, 6, 16)
    tokens = codes.gather(1, labels.instances[..., None].expand(-1, -1, 16)) + torch.randn(8, 64, 16)
    layout = type("Layout", (), {"dim": 16, "grid": (8, 8), "num_prefix_tokens": 0})()
    probes = BindingProbes({0: layout}, ("quadratic",), 3, ProbeTraining(lr=1e-2, rank=8))
    for _ in range(60):
        probes.train_step({0: tokens}, scenes)
    single = probes.at(0)
    basis = probe_subspace(single)
    pairs = labels.pairs()

    def accuracy(change):
        parts = tokens @ basis.T
        scores = single.score("quadratic", tokens + (change(parts) - parts) @ basis)
        return ((scores >= 0) == pairs.same)[pairs.counted].double().mean().item()

    plain = accuracy(lambda parts: parts)
    assert accuracy(inject(1.0, labels.instances)) > plain + 0.02
    assert accuracy(shuffle(1.0, draws())) < accuracy(shuffle(0.5, draws())) < plain - 0.02
