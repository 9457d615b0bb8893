"""Probes, compared with explicit formulas for single pairs in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F

from visionattn.objects.patches import label_patches
from visionattn.objects.probes import EPSILON, PROBES, RunningNorm, create_probe, match_queries

L, B, N, D = 2, 3, 16, 6


def logit(p):
    return torch.log(p.clamp(EPSILON, 1 - EPSILON) / (1 - p.clamp(EPSILON, 1 - EPSILON)))


def agreement(probe, layer, x, y):
    p, q = (F.softmax(probe.weight[layer] @ token + probe.bias[layer], dim=0) for token in (x, y))
    return logit(p @ q)


FORMULAS = {
    "linear": lambda p, n, x, y: p.weight[n] @ x + p.weight[n] @ y + p.bias[n],
    "diagonal": lambda p, n, x, y: x @ torch.diag(p.weight[n]) @ y + p.bias[n],
    "quadratic": lambda p, n, x, y: (
        x @ p.weight[n].T @ (torch.diag(p.signs[n]) @ p.weight[n]) @ y + p.bias[n]  # W₁, W₂ = S W₁
    ),
    "quadratic_full": lambda p, n, x, y: x @ ((p.weight[n] + p.weight[n].T) / 2) @ y + p.bias[n],
    "class": agreement,
    "identity": agreement,
    "cosine": lambda p, n, x, y: x @ y / (x.norm() * y.norm()),
    "dot": lambda p, n, x, y: x @ y / D**0.5,
}


@pytest.fixture
def probe(request):
    torch.manual_seed(1)
    made = create_probe(request.param, L, D, num_classes=4, rank=5, num_queries=7).double()
    for values in made.parameters():
        torch.nn.init.normal_(values)
    return made


def explicit(name, probe, x):
    """Score pairs one at a time: [L, B, N, N]."""
    return torch.stack(
        [
            torch.stack([torch.stack([FORMULAS[name](probe, n, a, b) for b in tokens]) for a in tokens])
            for n, images in enumerate(x)
            for tokens in images
        ]
    ).view(*x.shape[:2], x.shape[2], x.shape[2])


@pytest.mark.parametrize(("probe", "name"), [(name, name) for name in PROBES], indirect=["probe"], ids=PROBES)
def test_scores_and_gradients_equal_single_pairs(probe, name):
    x = torch.randn(L, 2, 5, D, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(L, 2, 5, 5, dtype=torch.float64)
    inputs = [x, *probe.parameters()]
    found, expected = probe(x), explicit(name, probe, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    grads = (torch.autograd.grad(scores, inputs, upstream) for scores in (found, expected))
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("probe", ["quadratic", "linear"], indirect=True)
def test_the_loss_is_the_cross_entropy_of_counted_pairs(probe, blocks):
    scenes = blocks(B)
    scenes.segments[0, :9] = 0
    labels = label_patches(scenes, (4, 4))
    pairs = labels.pairs()
    x = torch.randn(L, B, N, D, dtype=torch.float64)
    scores = probe(x)
    expected = torch.stack(
        [F.binary_cross_entropy_with_logits(each[pairs.counted], pairs.same[pairs.counted].double()) for each in scores]
    )
    found = probe.loss(x, labels, pairs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    grads = (torch.autograd.grad(loss.sum(), list(probe.parameters()), retain_graph=True) for loss in (found, expected))
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("probe", ["class"], indirect=True)
def test_class_probe_learns_the_classes_of_labelled_patches(probe, blocks):
    scenes = blocks(B)
    scenes.segments[0, :9] = 0
    labels = label_patches(scenes, (4, 4))
    x = torch.randn(L, B, N, D, dtype=torch.float64)
    logits = torch.einsum("lbnd,lcd->lbnc", x, probe.weight) + probe.bias[:, None, None]
    expected = [F.cross_entropy(each.flatten(0, 1), labels.classes.flatten(), ignore_index=-1) for each in logits]
    torch.testing.assert_close(probe.loss(x, labels, labels.pairs()), torch.stack(expected), rtol=0, atol=1e-10)


def test_queries_are_matched_one_to_one_with_segments():
    # Query 0 is best for both segments; the second one loses less without it.
    p = torch.tensor([[0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.5, 0.1, 0.4], [0.3, 0.3, 0.4]])
    instances = torch.tensor([[2, 2, 5, 0]])
    assert match_queries(p[None, None], instances).tolist() == [[[0, 0, 2, -1]]]
    # One query for two segments.
    assert match_queries(p[None, None, :, :1], instances).tolist() == [[[0, 0, -1, -1]]]


def test_identity_probe_learns_matched_queries(blocks):
    probe = create_probe("identity", L, D, num_classes=1, num_queries=7).double()
    labels = label_patches(blocks(B), (4, 4))
    x = torch.randn(L, B, N, D, dtype=torch.float64)
    logits = probe.logits(x)
    targets = match_queries(logits.softmax(-1), labels.instances)
    expected = [F.cross_entropy(a.flatten(0, 1), t.flatten()) for a, t in zip(logits, targets, strict=True)]
    torch.testing.assert_close(probe.loss(x, labels, labels.pairs()), torch.stack(expected), rtol=0, atol=1e-10)


def test_stacked_layers_train_independently(blocks):
    labels = label_patches(blocks(B), (4, 4))
    pairs = labels.pairs()
    x = torch.randn(L, B, N, D, dtype=torch.float64)
    for name in ("quadratic", "diagonal", "identity"):
        both = create_probe(name, L, D, num_classes=3, rank=4).double()
        second = copy.deepcopy(both)
        second.weight, second.bias = (torch.nn.Parameter(values[1:].detach()) for values in (both.weight, both.bias))
        if name == "quadratic":
            second.signs = second.signs[1:]
        both.loss(x, labels, pairs).sum().backward()
        second.loss(x[1:], labels, pairs).sum().backward()
        torch.testing.assert_close(both.weight.grad[1:], second.weight.grad, rtol=0, atol=1e-12)


def test_norm_uses_the_statistics_of_all_training_batches():
    torch.manual_seed(0)
    norm = RunningNorm(L, D).double()
    offset = torch.linspace(-30, 30, D, dtype=torch.float64)
    batches = [offset + torch.randn(L, size, 5, D, dtype=torch.float64) for size in (2, 3, 1)]
    for batch in batches:
        last = norm(batch)
    rows = F.layer_norm(torch.cat(batches, dim=1), (D,)).flatten(1, 2)
    torch.testing.assert_close(norm.mean, rows.mean(1))
    torch.testing.assert_close(norm.variance, rows.var(1, correction=0))
    assert torch.equal(norm.eval()(batches[-1]), last)
    normed = norm(torch.cat(batches, dim=1)).flatten(1, 2)
    torch.testing.assert_close(normed.mean(1), torch.zeros(L, D).double())
    torch.testing.assert_close(normed.std(1, correction=0), torch.ones(L, D).double(), rtol=1e-3, atol=0)


def test_norm_converts_directions_to_raw_tokens():
    norm = RunningNorm(1, D).double()
    tokens = torch.randn(1, 4, 9, D, dtype=torch.float64) * torch.linspace(1, 3, D, dtype=torch.float64)
    norm(tokens)
    weight = torch.randn(1, 3, D, dtype=torch.float64)
    directions = norm.to_tokens(weight)
    found = (norm.eval()(tokens) @ weight.mT) * tokens.var(-1, correction=0, keepdim=True).add(1e-5).sqrt()
    offset = found - tokens @ directions.mT  # is the same for all tokens, but for their lengths
    lengths = tokens.var(-1, correction=0, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(offset / lengths, (offset / lengths)[:, :1, :1].expand_as(offset))


@pytest.mark.parametrize(("options", "message"), [({"rank": 0}, "rank 0"), ({"num_queries": 0}, "num_queries 0")])
def test_unknown_probes_and_numbers_below_1_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_probe("quadratic", 1, 4, num_classes=3, **options)
    with pytest.raises(ValueError, match="no probe is named 'cubic'"):
        create_probe("cubic", 1, 4, num_classes=3)


def test_quadratic_probe_begins_as_the_dot_product():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 64, 96)
    x += 2 * torch.randn(1, 1, 8, 96).repeat(1, 1, 8, 1)  # eight objects
    scores, products = create_probe("quadratic", 1, 96, num_classes=4)(x), x @ x.mT
    apart = ~torch.eye(64, dtype=torch.bool)
    assert torch.corrcoef(torch.stack([scores[0, 0][apart], products[0, 0][apart]]))[0, 1] > 0.8
