"""Classification by the nearest images of train.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018, §3.4,
https://arxiv.org/abs/1805.01978. Values of k and T to choose from are those of arXiv 2506.10178.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.probing.features.sources import FeatureSource
from visionattn.probing.protocols.results import HeadResult, Progress
from visionattn.probing.protocols.selection import Classifier, Option, Selection, fit_and_evaluate, grid

KS = (5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.07, 0.1, 0.2)
BANK = 16384
"""Number of images of train that are compared at a time."""


def knn(
    train: FeatureSource,
    val: FeatureSource,
    num_classes: int,
    *,
    ks: Sequence[int] = KS,
    temperatures: Sequence[float] = TEMPERATURES,
    selection: Selection | None = None,
    progress: Progress | None = None,
) -> HeadResult:
    """Classify val by the k nearest images of train, which vote with weight exp(cosine / T).

    `ks` are the values of k to choose from (all images vote if train has fewer), and `temperatures` those of T. Other
    arguments, and errors, are those of `fit_and_evaluate`. The result has no head.
    """

    def fit(vectors: Tensor, targets: Tensor, options: Sequence[Option]) -> Classifier:
        bank = F.normalize(vectors, dim=1)
        return Classifier(lambda queries: votes(F.normalize(queries, dim=1), bank, targets, num_classes, options))

    options = grid(k=ks, temperature=temperatures)
    return fit_and_evaluate("knn", fit, options, train, val, num_classes, selection or Selection(), progress)


def votes(queries: Tensor, bank: Tensor, targets: Tensor, num_classes: int, options: Sequence[Option]) -> Tensor:
    """Return the sums of exp(similarity / T) over the k nearest images of each class, `[options, B, num_classes]`.

    They are -inf for classes without a neighbour. Queries `[B, dim]` and the bank `[n, dim]` have length 1; options are
    values of k and temperature.
    """
    similarity, index = nearest(queries, bank, int(max(option["k"] for option in options)))
    labels = targets[index]
    scores = queries.new_zeros(len(options), len(queries), num_classes)
    for option, score in zip(options, scores, strict=True):
        k = int(option["k"])
        score.scatter_add_(1, labels[:, :k], (similarity[:, :k] / option["temperature"]).exp())
    return scores.where(scores > 0, -torch.inf)


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest products of queries `[B, dim]` with a bank `[n, dim]`, and their indices.

    Both are `[B, min(k, n)]`, in falling order.
    """
    values = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), BANK):
        found = queries @ bank[start : start + BANK].T
        top = found.topk(min(k, found.shape[1]), 1)
        values = torch.cat([values, top.values], 1)
        indices = torch.cat([indices, top.indices + start], 1)
        kept = values.topk(min(k, values.shape[1]), 1)
        values, indices = kept.values, indices.gather(1, kept.indices)
    return values, indices
