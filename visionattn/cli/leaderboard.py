"""A table of what several runs of eval.py probe found."""

import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from visionattn.cli.errors import UsageError
from visionattn.cli.probing_report import head_label
from visionattn.cli.report import check_writable, write_text
from visionattn.words import counted

NEEDED = (
    *("model", "checkpoint", "weights", "layers", "dataset", "root", "num_train", "views", "epochs", "seed"),
    *("head", "options", "optimizer", "num_parameters", "top1", "top5", "selected_on"),
)


class Subject(NamedTuple):
    """What runs have in common that differ in their seeds; a table has one line for each.

    Attributes:
        table: its title.
        backbone: with where its weights come from.
        layers: of its features.
        head: with its options.
        training: epochs, optimizer and views.
        chosen_on: where rates, epochs and the like were chosen.
        hashes: of the backbone's weights and of the data; empty in files of earlier versions.
    """

    table: str
    backbone: str
    layers: str
    head: str
    training: str
    chosen_on: str
    hashes: tuple[str, str]


class Entry(NamedTuple):
    """What these runs found.

    Attributes:
        num_parameters: that were trained.
        top1: fractions, by the seed of the run or few-shot draw.
        top5: the same.
    """

    num_parameters: int
    top1: dict[int, float]
    top5: dict[int, float]


def leaderboard(results: list[Path], output: Path | None = None) -> None:
    """Print a table of what several runs of probe found, and draw it.

    Args:
        results: JSON files of earlier runs, or patterns of their names.
        output: Markdown file for the table; an image beside it has the same name and ends in .png.

    Raises:
        UsageError: a file of another kind is to be written.
        FileNotFoundError: a file is not there.
        ValueError: a file holds no such results.
    """
    if output is not None and output.suffix != ".md":
        raise UsageError(f"--output of a leaderboard must be a Markdown file, NAME.md, got {output}")
    check_writable(output)
    entries = collect([row for path in _expand(results) for row in read_results(path)])
    text = to_markdown(entries)
    if output is not None:
        write_text(text, output)
        _draw(entries, output.with_suffix(".png"))
    print(text, end="")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON file of eval.py probe.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        rows = json.loads(path.read_bytes())["results"]
        complete = all(key in row for row in rows for key in NEEDED)
    except (ValueError, TypeError, KeyError):
        complete = False
    if not complete:
        raise ValueError(f"{path} holds no results of eval.py probe --output: leave it out")
    return list(rows)


def collect(rows: Sequence[Mapping[str, Any]]) -> dict[Subject, Entry]:
    """Puts together what differs in nothing but the seed, of several with the same seed the last one."""
    entries: dict[Subject, Entry] = {}
    for row in rows:
        origin = row["checkpoint"] or row["weights"]
        chosen_on = row["selected_on"]
        subject = Subject(
            table=_title(row),
            backbone=row["model"] if origin == "pretrained" else f"{row['model']} ({origin})",
            layers="+".join(map(str, row["layers"])),
            head=head_label(row),
            training=_training(row),
            chosen_on="part of train" if chosen_on == "held_out" else chosen_on or "–",
            hashes=(row.get("weights_hash", ""), row.get("data_hash", "")),
        )
        entry = entries.setdefault(subject, Entry(row["num_parameters"], {}, {}))
        # Each draw of few-shot learning has a seed of its own.
        for seed, found in enumerate(row.get("draws") or [row], row["seed"]):
            entry.top1[seed], entry.top5[seed] = found["top1"], found["top5"]
    return {_tell_apart(subject, entries): entry for subject, entry in entries.items()}


def _tell_apart(subject: Subject, all_of_them: Iterable[Subject]) -> Subject:
    """Add hashes to the names of what has other weights, or other data, than its namesakes."""
    weights, data = subject.hashes
    namesakes = [other.hashes for other in all_of_them if other[:-1] == subject[:-1]]
    if len({hashes[0] for hashes in namesakes}) > 1:
        subject = subject._replace(backbone=f"{subject.backbone}, weights {weights[:8] or 'unknown'}")
    if len({hashes[1] for hashes in namesakes}) > 1:
        subject = subject._replace(table=f"{subject.table}, data {data[:8] or 'unknown'}")
    return subject


def to_markdown(entries: Mapping[Subject, Entry]) -> str:
    """A table for each data set, best first.

    Rates are in percent, of several seeds the mean and the standard deviation of the sample.
    """
    parts = []
    for title in dict.fromkeys(subject.table for subject in entries):
        lines = {subject: entry for subject, entry in entries.items() if subject.table == title}
        cells: list[tuple[str, ...]] = [
            ("backbone", "layers", "head", "parameters", "top-1 (%)", "top-5 (%)", "training", "chosen on", "runs"),
            ("---", "---", "---", "---:", "---:", "---:", "---", "---", "---:"),
        ]
        for subject, entry in sorted(lines.items(), key=lambda line: -fmean(line[1].top1.values())):
            rates = (_mean(rates) for rates in (entry.top1, entry.top5))
            words = (subject.backbone, subject.layers, subject.head, f"{entry.num_parameters:,}", *rates)
            cells.append((*words, subject.training, subject.chosen_on, str(len(entry.top1))))
        table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
        parts.append(f"## {title}\n\n{table}\n")
    return "\n".join(parts)


def _draw(entries: Mapping[Subject, Entry], path: Path) -> None:
    from visionattn.viz.leaderboard import Point, save_leaderboard

    save_leaderboard(
        [
            Point(
                subject.table,
                subject.backbone if subject.layers == "last" else f"{subject.backbone}, layers {subject.layers}",
                subject.head,
                entry.num_parameters,
                fmean(entry.top1.values()),
                _deviation(entry.top1),
            )
            for subject, entry in entries.items()
        ],
        path,
    )


def _title(row: Mapping[str, Any]) -> str:
    data = Path(row["root"]).name if row["dataset"] == "folder" and row["root"] else row["dataset"]
    if row.get("shots") is None:
        return f"{data}, {row['num_train']:,} training images"
    return f"{data}, {row['shots']} training images per class"


def _training(row: Mapping[str, Any]) -> str:
    if not row["optimizer"]:
        return "–"
    views = f", {row['views']} views" if row["views"] > 1 else ""
    return f"{counted(row['epochs'], 'epoch')}, {row['optimizer']}{views}"


def _mean(rates: Mapping[int, float]) -> str:
    mean = f"{100 * fmean(rates.values()):.2f}"
    return f"{mean} ± {100 * _deviation(rates):.2f}" if len(rates) > 1 else mean


def _deviation(rates: Mapping[int, float]) -> float:
    return stdev(rates.values()) if len(rates) > 1 else 0.0


def _expand(patterns: Sequence[Path]) -> list[Path]:
    """The files; a shell hands over a pattern that matches nothing, or that stands in quotes."""
    paths: list[Path] = []
    for pattern in patterns:
        found = [Path(name) for name in sorted(glob.glob(str(pattern)))]  # noqa: PTH207  may be absolute
        if not found:
            raise FileNotFoundError(f"no results at {pattern}: name JSON files that eval.py probe --output wrote")
        paths += found
    return list(dict.fromkeys(paths))
