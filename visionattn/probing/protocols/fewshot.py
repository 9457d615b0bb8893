"""Few images per class, drawn several times."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from visionattn.probing.features.sources import FeatureSource
from visionattn.probing.protocols.results import HeadResult, Progress
from visionattn.probing.protocols.split import FeatureSubset, draw


@dataclass(frozen=True)
class FewShotResult:
    """Accuracy of a head after n images per class; rates are fractions.

    Attributes:
        name: Head or protocol.
        shots: Images per class.
        draws: The result of each draw.
        top1: Mean of top-1 over the draws.
        top1_std: Standard deviation of top-1, of the sample; 0 for a single draw.
        top5: Mean of top-5.
        top5_std: Standard deviation of top-5.
    """

    name: str
    shots: int
    draws: tuple[HeadResult, ...]
    top1: float
    top1_std: float
    top5: float
    top5_std: float

    @classmethod
    def of(cls, shots: int, draws: tuple[HeadResult, ...]) -> "FewShotResult":
        """Summarize the draws of a head."""
        rates = [[getattr(draw, rate) for draw in draws] for rate in ("top1", "top5")]
        means = [statistic for values in rates for statistic in (fmean(values), deviation(values))]
        return cls(draws[0].name, shots, draws, *means)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; keys that a `HeadResult` also has mean the same."""
        first = self.draws[0]
        return {
            "name": self.name,
            "shots": self.shots,
            "repeats": len(self.draws),
            "options": dict(first.options) if first.optimizer else {},
            "num_parameters": first.num_parameters,
            "top1": self.top1,
            "top1_std": self.top1_std,
            "top5": self.top5,
            "top5_std": self.top5_std,
            "selected_on": first.selected_on,
            "optimizer": first.optimizer,
            "seconds": sum(draw.seconds for draw in self.draws),
            "draws": [draw.to_dict() for draw in self.draws],
        }


def few_shot(
    evaluate: Callable[[FeatureSource, int], Iterable[HeadResult]],
    train: FeatureSource,
    shots: int,
    repeats: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[FewShotResult]:
    """Evaluate heads that learn from n images per class.

    Images to choose hyper-parameters on are held out of the n. With one image per class the hyper-parameters must be
    fixed, or chosen on val (`SelectedOn`).

    Args:
        evaluate: One protocol or several: from the drawn part of train and a seed to results, the same ones in the same
            order each time.
        train: Features to draw from.
        shots: Images per class.
        repeats: Number of draws.
        seed: Seed of the first draw; each later draw has the next seed.
        progress: Called after each draw with its number and the number of all.

    Returns:
        A summary for each head.

    Raises:
        ValueError: A class has too few images, or a protocol refuses the drawn images.
    """
    if repeats < 1:
        raise ValueError(f"draws must be at least 1; got {repeats}")
    draws = []
    for number in range(repeats):
        part = FeatureSubset(train, draw(train.targets, shots, seed + number))
        draws.append([replace(result, head=None) for result in evaluate(part, seed + number)])
        if progress is not None:
            progress(number + 1, repeats)
    return [FewShotResult.of(shots, results) for results in zip(*draws, strict=True)]


def deviation(values: Collection[float]) -> float:
    """Return the standard deviation of the sample; 0 for a single value."""
    return stdev(values) if len(values) > 1 else 0.0
