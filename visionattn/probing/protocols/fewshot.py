"""Few images per class, drawn several times."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from visionattn.probing.features.sources import FeatureSource
from visionattn.probing.protocols.results import HeadResult, Probe, Progress
from visionattn.probing.protocols.split import Subset, draw


@dataclass(frozen=True)
class FewShotResult:
    """How well a head classifies after n images per class; rates are fractions.

    Attributes:
        name: Of the head or protocol.
        shots: Images per class.
        top1_mean: Mean of top-1 over the draws.
        top1_std: Its standard deviation, of the sample; 0 for a single draw.
        top5_mean: Mean of top-5.
        top5_std: Its standard deviation.
        draws: The result of each draw.
    """

    name: str
    shots: int
    top1_mean: float
    top1_std: float
    top5_mean: float
    top5_std: float
    draws: tuple[HeadResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return asdict(self)


def few_shot(
    evaluate: Callable[[FeatureSource, int], Sequence[Probe]],
    train: FeatureSource,
    shots: int,
    repeats: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[FewShotResult]:
    """Evaluates heads that learn from n images per class.

    What is held out to choose hyper-parameters is held out of the n, so that with one image per class they must be
    fixed, or chosen on val (`SelectedOn`).

    Args:
        evaluate: Any of the protocols, or several, from the drawn part of train and a seed to probes; the same ones in
            the same order each time.
        train: Features to draw from.
        shots: Images per class.
        repeats: How many times they are drawn.
        seed: Of the first draw; later ones have the next.
        progress: Called after each draw with their number, and that of all.

    Returns:
        A result for each probe.

    Raises:
        ValueError: A class has too few images, or a protocol refuses what is drawn.
    """
    if repeats < 1:
        raise ValueError(f"draws must be at least 1; got {repeats}")
    draws = []
    for number in range(repeats):
        part = Subset(train, draw(train.targets, shots, seed + number))
        draws.append([probe.result for probe in evaluate(part, seed + number)])
        if progress is not None:
            progress(number + 1, repeats)
    return [_summarize(shots, results) for results in zip(*draws, strict=True)]


def _summarize(shots: int, results: tuple[HeadResult, ...]) -> FewShotResult:
    top1, top5 = ([getattr(result, rate) for result in results] for rate in ("top1", "top5"))
    spread = [stdev(rates) if len(rates) > 1 else 0.0 for rates in (top1, top5)]
    return FewShotResult(results[0].name, shots, fmean(top1), spread[0], fmean(top5), spread[1], results)
