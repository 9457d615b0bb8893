"""Linear classifiers that are fitted to pooled vectors: ridge regression and logistic regression."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from visionattn.probing.features.extraction import PooledKind
from visionattn.probing.features.sources import FeatureSource
from visionattn.probing.heads import ProbingHead, create_head
from visionattn.probing.protocols.results import HeadResult, Progress
from visionattn.probing.protocols.selection import Classifier, Option, Selection, fit_and_evaluate, grid

LAMBDAS = tuple(10.0 ** (half / 2) for half in range(-12, 3))
CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
ROWS = 8192
"""Number of vectors whose products are summed at a time."""
EPS = 1e-6
"""Epsilon of the batch norm of heads."""
ABSENT = -1e4
"""Score of a class without images in train."""


def ridge(
    train: FeatureSource,
    val: FeatureSource,
    num_classes: int,
    *,
    lambdas: Sequence[float] = LAMBDAS,
    selection: Selection | None = None,
    progress: Progress | None = None,
) -> HeadResult:
    """Classify val by ridge regression to 1 for an image's class and -1 for others, with an intercept.

    Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", 1970, eq. 2.1,
    https://doi.org/10.2307/1267351.

    `lambdas` are the penalties to choose from, in units of the mean eigenvalue of the centred Gram matrix, so that they
    suit vectors of any scale and number. The other arguments, and errors, are those of `fit_and_evaluate`.
    """

    def fit(vectors: Tensor, targets: Tensor, options: Sequence[Option]) -> Classifier:
        moments = Moments(vectors.shape[1], num_classes, vectors.device)
        for x, y in zip(vectors.split(ROWS), targets.split(ROWS), strict=True):
            moments.add(x, y)
        unit = float(moments.gram().trace()) / vectors.shape[1]
        return _linear(*moments.solve([option["lambda"] * unit for option in options]))

    options = grid(**{"lambda": lambdas})
    return fit_and_evaluate("ridge", fit, options, train, val, num_classes, selection or Selection(), progress)


class Moments:
    """Sums over vectors and their classes in float64, from which ridge regression follows."""

    def __init__(self, dim: int, num_classes: int, device: str | torch.device = "cpu") -> None:
        self._num_classes = num_classes
        self._products = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self._sums = torch.zeros(num_classes, dim, dtype=torch.float64, device=device)
        self._counts = torch.zeros(num_classes, dtype=torch.float64, device=device)

    def add(self, vectors: Tensor, targets: Tensor) -> None:
        """Add vectors `[b, dim]` of classes `[b]`."""
        x = vectors.double()
        self._products.addmm_(x.T, x)
        self._sums.index_add_(0, targets, x)
        self._counts += targets.bincount(minlength=self._num_classes)

    def gram(self) -> Tensor:
        """Return Σ (x - x̄)(x - x̄)ᵀ, `[dim, dim]`."""
        total = self._sums.sum(0)
        return self._products - total.outer(total) / self._counts.sum()

    def solve(self, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Solve ridge regression for penalties, which are added to the eigenvalues of the Gram matrix.

        Returns:
            Weights `[penalties, num_classes, dim]` and intercepts `[penalties, num_classes]`.
        """
        shares, mean = self._counts / self._counts.sum(), self._sums.sum(0) / self._counts.sum()
        eigenvalues, vectors = torch.linalg.eigh(self.gram())
        # Targets are 2 for the class and 0 for others, less what makes their mean 0.
        right = 2 * (self._sums - self._counts.outer(mean)) @ vectors  # [num_classes, dim]
        damped = eigenvalues.clamp(min=0) + eigenvalues.new_tensor(alphas)[:, None]
        weight = right / damped[:, None] @ vectors.T
        return weight, 2 * shares - 1 - weight @ mean


def logistic_regression(
    train: FeatureSource,
    val: FeatureSource,
    num_classes: int,
    *,
    cs: Sequence[float] = CS,
    max_iter: int = 1000,
    selection: Selection | None = None,
    progress: Progress | None = None,
) -> HeadResult:
    """Classify val by scikit-learn's logistic regression on vectors with mean 0 and variance 1.

    `cs` are the values of C to choose from, inverse strengths of the penalty; scikit-learn warns if `max_iter` is too
    small for one. The other arguments, and errors, are those of `fit_and_evaluate`.
    """

    def fit(vectors: Tensor, targets: Tensor, options: Sequence[Option]) -> Classifier:
        from sklearn.linear_model import LogisticRegression

        if len(present := targets.unique()) < 2:
            raise ValueError(f"logistic regression needs images of at least 2 classes; train has {len(present)}")
        variance, mean = torch.var_mean(vectors.double(), 0, correction=0)
        x = _normalize(vectors, mean, variance).float().cpu().numpy()
        model = LogisticRegression(max_iter=max_iter, warm_start=True)
        weight = vectors.new_zeros(len(options), num_classes, vectors.shape[1], dtype=torch.float64)
        bias = torch.full_like(weight[..., 0], ABSENT)
        # From the strongest penalty on: each solution is where the next one begins.
        for number in sorted(range(len(options)), key=lambda number: options[number]["C"]):
            model.set_params(C=options[number]["C"]).fit(x, targets.cpu().numpy())
            found = torch.from_numpy(np.column_stack([model.coef_, model.intercept_])).to(weight)
            if len(found) == 1:  # of two classes scikit-learn scores the second alone
                found = torch.cat([-found, found]) / 2
            weight[number, present], bias[number, present] = found[:, :-1], found[:, -1]
        return _linear(weight, bias, mean, variance)

    options = grid(C=cs)
    return fit_and_evaluate("logistic", fit, options, train, val, num_classes, selection or Selection(), progress)


def _linear(weight: Tensor, bias: Tensor, mean: Tensor | None = None, variance: Tensor | None = None) -> Classifier:
    """Make a classifier of weights `[options, num_classes, dim]` and biases, for vectors that it may normalise."""
    mean = weight.new_zeros(weight.shape[-1]) if mean is None else mean
    variance = torch.full_like(mean, 1 - EPS) if variance is None else variance

    def scores(queries: Tensor) -> Tensor:
        return _normalize(queries, mean, variance) @ weight.mT + bias[:, None]

    def make_head(kind: PooledKind, option: int) -> ProbingHead:
        head = create_head(kind, weight.shape[2], weight.shape[1])
        values = (mean, variance, weight[option], bias[option])
        names = ("norm.running_mean", "norm.running_var", "classifier.weight", "classifier.bias")
        head.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
        return head

    return Classifier(scores, make_head)


def _normalize(vectors: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Normalise as the batch norm of a head does."""
    return (vectors - mean) / (variance + EPS).sqrt()
