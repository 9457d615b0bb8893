"""Accuracy and AUC of pair scores, counted in histograms: memory does not grow with the data.

Scores are mapped through s / (4 + |s|) to bins of equal width. The middle bin edge is at a score of 0, so decisions at
0 are exact. In the area under the ROC curve, two scores in one bin count half. The error is therefore at most half the
share of such ties; it is reported with the area, and is about 1e-4 for scores up to 10.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from visionattn.objects.patches import PatchPairs

NUM_BINS, SOFTNESS = 4096, 4.0


@dataclass(frozen=True)
class PairRates:
    """Rates over pairs of patches, as fractions; None if there are no pairs to compute a rate from.

    Attributes:
        num_pairs: Number of pairs, each counted once.
        share_different: Share of pairs on two objects: the accuracy of always answering "different".
        accuracy: Share of correct decisions.
        balanced_accuracy: Mean of the accuracy on same pairs and the accuracy on different pairs.
        auc: Area under the ROC curve.
        auc_error: Largest possible error of `auc` through binning.
    """

    num_pairs: int
    share_different: float | None
    accuracy: float | None
    balanced_accuracy: float | None
    auc: float | None
    auc_error: float | None


class PairScores:
    """Histograms of pair scores for L layers; scores are symmetric, so each pair of different patches is counted once.

    Attributes:
        counts: `[L, 2, 2, NUM_BINS]`, int64, by whether both patches lie on objects, and whether on the same one.
    """

    def __init__(self, num_layers: int, device: str | torch.device = "cpu") -> None:
        self.counts = torch.zeros(num_layers, 2, 2, NUM_BINS, dtype=torch.int64, device=device)

    def update(self, scores: Tensor, pairs: PatchPairs) -> None:
        """Count scores `[L, B, N, N]` of pairs `[B, N, N]`."""
        chosen = pairs.counted.triu(1).flatten().nonzero()[:, 0]
        kinds = (2 * pairs.foreground + 1 * pairs.same).flatten()[chosen]  # [M]
        taken = scores.flatten(1)[:, chosen]
        # Unbounded scores would fall beyond the last bin, NUM_BINS - 1.
        bins = ((taken / (SOFTNESS + taken.abs()) + 1) * (NUM_BINS / 2)).long().clamp_(0, NUM_BINS - 1)
        layers = torch.arange(len(scores), device=scores.device)[:, None]
        places = (4 * layers + kinds) * NUM_BINS + bins
        self.counts += torch.bincount(places.flatten(), minlength=self.counts.numel()).view(self.counts.shape)

    def fit_thresholds(self) -> Tensor:
        """Return for each layer `[L]` the first bin to call "same" for the best accuracy, the lowest of equals."""
        different, same = self.counts.sum(1).unbind(1)  # [L, NUM_BINS]
        right = _below(different) + same.sum(-1, keepdim=True) - _below(same)  # [L, NUM_BINS + 1]
        return right.argmax(-1)

    def rates(self, layer: int, threshold: int = NUM_BINS // 2, foreground: bool = False) -> PairRates:
        """Return the rates of a layer over all pairs, or over those with both patches on objects (`foreground`).

        Bins from `threshold` on are called "same"; the default decides at a score of 0.
        """
        counts = self.counts[layer, 1] if foreground else self.counts[layer].sum(0)
        different, same = counts.cpu().double()
        num_different, num_same = float(different.sum()), float(same.sum())
        total = num_different + num_same
        if not total:
            return PairRates(0, None, None, None, None, None)
        right_different, right_same = float(different[:threshold].sum()), float(same[threshold:].sum())
        balanced = auc = error = None
        if num_different and num_same:
            balanced = (right_different / num_different + right_same / num_same) / 2
            area = float(num_different * num_same)
            ties = float(same @ different) / area
            auc = float(same @ _below(different)[:-1]) / area + ties / 2
            error = ties / 2
        return PairRates(
            int(total), num_different / total, (right_different + right_same) / total, balanced, auc, error
        )


def _below(counts: Tensor) -> Tensor:
    """Return the counts below each bin edge, including the last: `[..., NUM_BINS + 1]`."""
    return torch.nn.functional.pad(counts.cumsum(-1), (1, 0))
