"""How well scores tell pairs of one object from others, counted in bins: memory does not grow with the data.

Scores go through s / (4 + |s|) into bins of equal width, the middle of which divides negative from other scores. So
decisions at 0 are counted exactly. Of the area under the ROC curve, pairs of scores that share a bin count half; it is
off by no more than half their share, which is reported with it: some 1e-4 for scores up to 10 or so.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from visionattn.objects.patches import PatchPairs

NUM_BINS, SOFTNESS = 4096, 4.0


@dataclass(frozen=True)
class PairRates:
    """Decisions on pairs of patches as fractions; None where there are no pairs of which to take one.

    Attributes:
        num_pairs: Pairs, each counted once.
        share_different: Share of them that lie on two objects: the accuracy of saying "different" always.
        accuracy: Share of right decisions.
        balanced_accuracy: Mean of the shares of right decisions among the same and among the different.
        auc: Area under the ROC curve.
        auc_error: The most that it may be off by.
    """

    num_pairs: int
    share_different: float | None
    accuracy: float | None
    balanced_accuracy: float | None
    auc: float | None
    auc_error: float | None


class PairScores:
    """Scores of pairs of L layers, in bins.

    Pairs are those of two different patches, each counted once: scores are symmetric.

    Attributes:
        counts: `[L, 2, 2, NUM_BINS]`, int64: by whether both patches lie on objects, and whether it is the same one.
    """

    def __init__(self, num_layers: int, device: str | torch.device = "cpu") -> None:
        self.counts = torch.zeros(num_layers, 2, 2, NUM_BINS, dtype=torch.int64, device=device)

    def update(self, scores: Tensor, pairs: PatchPairs) -> None:
        """Counts scores `[L, B, N, N]` of pairs `[B, N, N]`."""
        chosen = pairs.counted.triu(1).flatten().nonzero()[:, 0]
        kinds = (2 * pairs.foreground + 1 * pairs.same).flatten()[chosen]  # [M]
        taken = scores.flatten(1)[:, chosen]
        # One less than the number of bins is the last one, where scores without bound would be.
        bins = ((taken / (SOFTNESS + taken.abs()) + 1) * (NUM_BINS / 2)).long().clamp_(0, NUM_BINS - 1)
        layers = torch.arange(len(scores), device=scores.device)[:, None]
        places = (4 * layers + kinds) * NUM_BINS + bins
        self.counts += torch.bincount(places.flatten(), minlength=self.counts.numel()).view(self.counts.shape)

    def fit_thresholds(self) -> Tensor:
        """First bin of each layer, `[L]`, from which on to say "same" for the best accuracy; the lowest of equals."""
        different, same = self.counts.sum(1).unbind(1)  # [L, NUM_BINS]
        right = _below(different) + same.sum(-1, keepdim=True) - _below(same)  # [L, NUM_BINS + 1]
        return right.argmax(-1)

    def rates(self, layer: int, threshold: int = NUM_BINS // 2, foreground: bool = False) -> PairRates:
        """Decisions of a layer.

        Args:
            layer: By its place.
            threshold: First bin that says "same"; the default decides at a score of 0.
            foreground: Only of pairs both of which lie on objects.
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
    """How many lie below each bin and, in the end, below all of them: `[..., NUM_BINS + 1]`."""
    return torch.nn.functional.pad(counts.cumsum(-1), (1, 0))
