"""A leaderboard: the results of several probing runs in one table."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from visionattn.probing.protocols.fewshot import deviation
from visionattn.probing.results import data_name, head_label
from visionattn.viz.leaderboard import Point
from visionattn.words import counted

NEEDED = (
    *("model", "checkpoint", "weights", "layers", "dataset", "root", "num_train", "views", "epochs", "seed"),
    *("head", "options", "optimizer", "num_parameters", "top1", "top5", "selected_on"),
)


class LeaderboardKey(NamedTuple):
    """Settings that runs with other seeds share; a table has one line for each."""

    table: str  # title
    backbone: str  # with the origin of its weights
    layers: str
    head: str  # with its options
    training: str  # epochs, optimizer and views
    chosen_on: str  # where hyper-parameters were chosen
    hashes: tuple[str, str]  # of the backbone's weights and of the data; empty in files of earlier versions


class LeaderboardEntry(NamedTuple):
    """Trained parameters, and accuracies (fractions) by the seed of the run or few-shot draw."""

    num_parameters: int
    top1: dict[int, float]
    top5: dict[int, float]


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON file of ``eval.py probe --output``; raise a ValueError for any other file."""
    try:
        rows = json.loads(path.read_bytes())["results"]
        complete = all(key in row for row in rows for key in NEEDED)
    except (ValueError, TypeError, KeyError):
        complete = False
    if not complete:
        raise ValueError(f"{path} holds no results of eval.py probe --output: leave it out")
    return list(rows)


def collect(rows: Sequence[Mapping[str, Any]]) -> dict[LeaderboardKey, LeaderboardEntry]:
    """Return rows grouped by all but their seeds; of several rows with one seed the last one counts."""
    entries: dict[LeaderboardKey, LeaderboardEntry] = {}
    for row in rows:
        origin = row["checkpoint"] or row["weights"]
        chosen_on = row["selected_on"]
        key = LeaderboardKey(
            table=_title(row),
            backbone=row["model"] if origin == "pretrained" else f"{row['model']} ({origin})",
            layers="+".join(map(str, row["layers"])),
            head=head_label(row),
            training=_training(row),
            chosen_on="part of train" if chosen_on == "held_out" else chosen_on or "–",
            hashes=(row.get("weights_hash", ""), row.get("data_hash", "")),
        )
        entry = entries.setdefault(key, LeaderboardEntry(row["num_parameters"], {}, {}))
        # Each draw of few-shot learning has a seed of its own.
        for seed, found in enumerate(row.get("draws") or [row], row["seed"]):
            entry.top1[seed], entry.top5[seed] = found["top1"], found["top5"]
    return {_tell_apart(key, entries): entry for key, entry in entries.items()}


def _tell_apart(key: LeaderboardKey, all_of_them: Iterable[LeaderboardKey]) -> LeaderboardKey:
    """Add hashes to the names of backbones and data if others have the same name."""
    weights, data = key.hashes
    namesakes = [other.hashes for other in all_of_them if other[:-1] == key[:-1]]
    if len({hashes[0] for hashes in namesakes}) > 1:
        key = key._replace(backbone=f"{key.backbone}, weights {weights[:8] or 'unknown'}")
    if len({hashes[1] for hashes in namesakes}) > 1:
        key = key._replace(table=f"{key.table}, data {data[:8] or 'unknown'}")
    return key


def to_markdown(entries: Mapping[LeaderboardKey, LeaderboardEntry]) -> str:
    """Return a Markdown table for each data set, best first.

    Rates are in percent; several seeds are shown as mean and standard deviation of the sample.
    """
    parts = []
    for title in dict.fromkeys(key.table for key in entries):
        lines = {key: entry for key, entry in entries.items() if key.table == title}
        cells: list[tuple[str, ...]] = [
            ("backbone", "layers", "head", "parameters", "top-1 (%)", "top-5 (%)", "training", "chosen on", "runs"),
            ("---", "---", "---", "---:", "---:", "---:", "---", "---", "---:"),
        ]
        for key, entry in sorted(lines.items(), key=lambda line: -fmean(line[1].top1.values())):
            rates = (_mean(rates) for rates in (entry.top1, entry.top5))
            words = (key.backbone, key.layers, key.head, f"{entry.num_parameters:,}", *rates)
            cells.append((*words, key.training, key.chosen_on, str(len(entry.top1))))
        table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
        parts.append(f"## {title}\n\n{table}\n")
    return "\n".join(parts)


def points(entries: Mapping[LeaderboardKey, LeaderboardEntry]) -> list[Point]:
    """Return accuracy against trained parameters, for `visionattn.viz.leaderboard.save_leaderboard`."""
    return [
        Point(
            key.table,
            key.backbone if key.layers == "last" else f"{key.backbone}, layers {key.layers}",
            key.head,
            entry.num_parameters,
            fmean(entry.top1.values()),
            deviation(entry.top1.values()),
        )
        for key, entry in entries.items()
    ]


def _title(row: Mapping[str, Any]) -> str:
    data = data_name(row)
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
    return f"{mean} ± {100 * deviation(rates.values()):.2f}" if len(rates) > 1 else mean
