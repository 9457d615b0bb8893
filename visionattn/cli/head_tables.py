"""Tables of heads: their scores, what they do, and networks without some of them."""

from collections.abc import Mapping, Sequence

from visionattn.analysis.head_study import RANDOM
from visionattn.analysis.heads import Head, HeadValues, head_name
from visionattn.analysis.pruning import PruningCurve
from visionattn.cli.report import print_table
from visionattn.probing.rows import mean_and_deviation

HEADINGS = {
    "distance": "distance",
    "distance_clipped": "clipped",
    "influence": "influence",
    "influence_peak": "peak",
    "entropy": "entropy",
    "prefix_mass": "prefix",
    "positional": "positional",
    "copy": "copy",
    "binding": "binding",
    "d_loss": "d loss",
    "d_top1": "d top-1",
    "d_features": "d features",
    "direct": "direct",
}
"""Headings of the scores, in the order of the table."""
PERCENT = ("prefix_mass", "positional", "copy", "d_top1", "top1", "d_features")
DIGITS = {"loss": 3, "d_loss": 4, "direct": 3}
MOST_ROWS = 150
"""Largest number of heads that are printed; the files have all."""
NAMED = 5
"""Number of heads that are named for what they do."""


def print_heads(values: HeadValues, effect: str, title: str) -> None:
    """Print the scores of the heads; of very many heads, those with the largest effects."""
    shown = list(values)
    if len(shown) > MOST_ROWS:
        shown = sorted(_ranked(values, effect, largest=True)[:MOST_ROWS])
        title += f"; the {MOST_ROWS} of {len(values)} heads with the largest {HEADINGS[effect]}"
    scores = known_scores(values)
    print_table(
        [
            {"head": head_name(head), **{HEADINGS[score]: cell(values[head], score) for score in scores}}
            for head in shown
        ],
        title=title,
    )


def print_roles(values: HeadValues, effect: str) -> None:
    """Print which heads look nearest, copy, bind and matter most."""
    roles = {
        "nearest keys": ("distance", False),
        "same map for every image": ("positional", True),
        "copies": ("copy", True),
        "same object": ("binding", True),
        "largest effect": (effect, True),
    }
    for role, (score, largest) in roles.items():
        heads = _ranked(values, score, largest)[:NAMED]
        if heads:
            named = ", ".join(f"{head_name(head)} ({cell(values[head], score, with_error=False)})" for head in heads)
            print(f"{role}, by {score}: {named}")


def known_scores(values: HeadValues) -> list[str]:
    """Return the scores that at least one head has, in the order of the table."""
    return [score for score in HEADINGS if any(found.get(score) is not None for found in values.values())]


def _ranked(values: HeadValues, score: str, largest: bool) -> list[Head]:
    known = [head for head, found in values.items() if found.get(score) is not None]
    return sorted(known, key=lambda head: values[head][score], reverse=largest)  # type: ignore[arg-type,return-value]


def cell(found: Mapping[str, float | None], figure: str, with_error: bool = True) -> str:
    """Return a figure and, if it is known, its standard error."""
    value, error = found.get(figure), found.get(f"{figure}_se") if with_error else None
    return "–" if value is None else _number(value, figure, error)


def _number(value: float, figure: str, error: float | None = None) -> str:
    scale, digits, unit = (100, 1, "%") if figure in PERCENT else (1, DIGITS.get(figure, 2), "")
    spread = "" if error is None else f" ± {scale * error:.{digits}f}"
    return f"{scale * value:.{digits}f}{spread}{unit}"


def _mean(values: Sequence[float], figure: str) -> str:
    """Return the mean, and the standard deviation unless all are equal."""
    mean, deviation = mean_and_deviation(values)
    assert mean is not None
    return _number(mean, figure, deviation or None)


def print_curves(curves: Mapping[str, PruningCurve], figures: Mapping[str, str]) -> None:
    """Print the area under each curve, and figures of the network at each number of removed heads."""
    named = {name: curve for name, curve in curves.items() if not name.startswith(RANDOM)}
    chance = [curve for name, curve in curves.items() if name.startswith(RANDOM)]
    for figure, heading in figures.items():
        rows = [
            {
                "order": name,
                "area": _number(curve.area[figure], figure),
                **{f"{point['num_heads']} cut": _number(point[figure], figure) for point in curve.points},
            }
            for name, curve in named.items()
        ]
        if chance:
            areas, columns = [curve.area[figure] for curve in chance], zip(*(x.points for x in chance), strict=True)
            cells = {f"{same[0]['num_heads']} cut": _mean([x[figure] for x in same], figure) for same in columns}
            rows.append({"order": f"random ({len(chance)})", "area": _mean(areas, figure), **cells})
        print_table(rows, title=f"{heading} without the first heads of an order; area over the share of heads")
