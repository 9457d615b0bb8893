"""Rates of streamed scores, compared with scikit-learn on all scores at once."""

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from visionattn.objects.patches import PatchPairs, label_patches
from visionattn.objects.scores import NUM_BINS, PairScores

L, B, N = 2, 4, 16


def streamed(scores, pairs):
    counted = PairScores(L)
    for number in range(B):
        counted.update(scores[:, number : number + 1], of_image(pairs, number))
    return counted


def of_image(pairs, number):
    return PatchPairs(*(values[number : number + 1] for values in pairs))


@pytest.mark.parametrize("scale", [0.3, 3.0, 300.0])
@pytest.mark.parametrize("foreground", [False, True])
def test_rates_equal_rates_of_all_scores_at_once(blocks, scale, foreground):
    pairs = label_patches(blocks(B), (4, 4)).pairs()
    noise = torch.randn(L, B, N, N)
    scores = scale * (noise + noise.mT + 0.5 * pairs.same)
    counted = streamed(scores, pairs)
    chosen = (pairs.foreground if foreground else pairs.counted).triu(1)
    same = pairs.same[chosen]
    for layer in range(L):
        rates = counted.rates(layer, foreground=foreground)
        values = scores[layer][chosen]
        assert rates.num_pairs == len(values)
        assert rates.share_different == pytest.approx(1 - same.double().mean().item())
        assert rates.accuracy == pytest.approx(accuracy_score(same, values >= 0))
        assert rates.balanced_accuracy == pytest.approx(balanced_accuracy_score(same, values >= 0))
        assert scale > 10 or rates.auc_error < 2e-3
        assert rates.auc == pytest.approx(roc_auc_score(same, values), abs=rates.auc_error + 1e-12)


def test_fitted_threshold_has_the_best_accuracy(blocks):
    pairs = label_patches(blocks(B), (4, 4)).pairs()
    scores = torch.randn(L, B, N, N) + torch.tensor([2.0, 3.0])[:, None, None, None] + 2 * pairs.same
    scores = (scores + scores.mT) / 2
    counted = streamed(scores, pairs)
    thresholds = counted.fit_thresholds().tolist()
    chosen = pairs.counted.triu(1)
    for layer, threshold in enumerate(thresholds):
        values, same = scores[layer][chosen], pairs.same[chosen]
        best = ((values >= values[:, None]) == same).double().mean(1).max().item()
        fitted = counted.rates(layer, threshold).accuracy
        assert counted.rates(layer).accuracy < fitted <= best + 1e-12
        assert fitted == pytest.approx(best, abs=0.01)


def test_rates_without_pairs_are_none():
    pairs = PatchPairs(*(torch.ones(1, 2, 2, dtype=torch.bool) for _ in range(2)), torch.zeros(1, 2, 2).bool())
    counted = PairScores(1)
    counted.update(torch.tensor([[[[0.0, 1e30], [1e30, 0.0]]]]), pairs)
    assert counted.counts[0, 0, 1, NUM_BINS - 1] == 1
    rates = counted.rates(0)
    assert (rates.num_pairs, rates.share_different, rates.accuracy) == (1, 0.0, 1.0)
    assert rates.balanced_accuracy is rates.auc is rates.auc_error is None
    assert counted.rates(0, foreground=True).accuracy is None


def test_histograms_do_not_grow_with_the_data(blocks):
    counted = PairScores(L)
    for seed in range(3):
        pairs = label_patches(blocks(B, seed=seed), (4, 4)).pairs()
        counted.update(torch.randn(L, B, N, N), pairs)
    tensors = [value for value in vars(counted).values() if isinstance(value, torch.Tensor)]
    assert [tuple(value.shape) for value in tensors] == [(L, 2, 2, NUM_BINS)]
