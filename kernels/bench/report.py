"""Result files: rows as CSV, and their origin as JSON beside them. Also published figures."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kernels.bench.script import keeps_memory
from visionattn_kernels.provenance import provenance

PUBLISHED = Path(__file__).parent / "published.csv"
"""Figures of others, each with its hardware and source. They stand beside ours and enter no ratio."""

PACKAGES = ("visionattn", "torch", "triton", "natten", "timm")

Row = Mapping[str, Any]


def package_version(package: str) -> str:
    """Return the version of an installed package, or "absent"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


class Report:
    """Rows of one run; written after every problem, so that an interrupted run keeps what it has."""

    def __init__(self, path: Path | None, device: torch.device, columns: Sequence[str], **details: object) -> None:
        """Start a report.

        Args:
            path: CSV file; the JSON file is its sibling. None writes nothing.
            device: On which is measured.
            columns: Of the script, after device, hardware and threads.
            **details: Further entries of the JSON file.
        """
        self.path = path
        self.rows: list[dict[str, Any]] = []
        origin = provenance(device)
        origin["versions"] = {name: package_version(name) for name in PACKAGES} | {"python": platform.python_version()}
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        self.origin = origin | {"memory": "kept" if keeps_memory() else "default", "load_at_start": load} | details
        hardware = origin["hardware"]
        self.common = {"device": device.type, "hardware": hardware["name"], "threads": hardware.get("threads", "")}
        self.columns = [*self.common, *columns]

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows and write both files; numbers keep four digits."""
        for row in rows:
            shown = {name: f"{x:.4g}" if isinstance(x, float) else x for name, x in row.items()}
            self.rows.append({name: {**self.common, **shown}.get(name, "") for name in self.columns})
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        self.path.with_suffix(".json").write_text(json.dumps(self.origin, indent=1) + "\n", encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read rows of a CSV file; an absent number is an empty string."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_origin(path: Path) -> dict[str, Any]:
    """Read the origin of the rows of a CSV file."""
    origin: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return origin


def published(problem: str, direction: str) -> list[dict[str, str]]:
    """Return published figures of a problem."""
    rows = read_rows(PUBLISHED)
    return [row for row in rows if (row["problem"], row["direction"]) == (problem, direction)]


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the p of the power law `y ~ x ** p` that fits best: the slope of a line through the logarithms."""
    u, v = ([math.log(value) for value in values] for values in (x, y))
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    return sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / sum((a - mean_u) ** 2 for a in u)


def geometric_mean(values: Sequence[float]) -> float:
    """Return the mean of ratios."""
    return math.exp(sum(map(math.log, values)) / len(values))
