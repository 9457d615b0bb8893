"""Results of ``eval.py throughput``: read, resume, and the page of a model zoo."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visionattn.evaluation.throughput import ThroughputRow
from visionattn.output import write_text

Results = Mapping[str, Any]


def read_results(path: Path) -> dict[str, Any]:
    """Read what an earlier run wrote to ``--output``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if all("images_per_second" in row or row["error"] for row in content["results"]) and content["hardware"]:
            return dict(content)
    except (ValueError, LookupError, TypeError):
        pass
    raise ValueError(f"{path} holds no results of eval.py throughput --output: name another file")


def read_held(output: Path | None, origin: dict[str, Any]) -> dict[str, ThroughputRow]:
    """Read the rows by model that an interrupted run has measured, and check that the conditions were the same."""
    if output is None:
        raise ValueError("--resume continues the file of --output: name it also")
    if not output.exists():
        return {}
    earlier = read_results(output)
    # The files of this command may be the only change since the commit.
    earlier["git_revision"], revision = (
        (found["git_revision"] or "").removesuffix("-dirty") for found in (earlier, origin)
    )
    for key, value in {**origin, "git_revision": revision}.items():
        if key != "command" and earlier.get(key) != value:
            raise ValueError(
                f"{output} was measured with {key} {earlier.get(key)!r}, here it is {value!r}: "
                "leave out --resume, or name another --output"
            )
    return {row["model"]: ThroughputRow(**row) for row in earlier["results"] if not row["error"]}


def write_zoo(measured: Sequence[Results], path: Path) -> None:
    """Write size, arithmetic and speed of models as a Markdown page, atomically.

    Args:
        measured: results of ``throughput``, one for each column of images/s; the first has the models. If another one
            measured a model at another image size, its cell stays empty.
        path: of the page.
    """
    columns = [{row["model"]: row for row in results["results"] if not row["error"]} for results in measured]
    speeds = [f"img/s ({number})" for number in range(1, len(measured) + 1)]
    lines = [["model", "input", "parameters (M)", "GMACs", *speeds], ["---", *["---:"] * (3 + len(speeds))]]
    for row in measured[0]["results"]:
        if row["error"]:
            lines.append([f"`{row['model']}`", "failed", *["–"] * (2 + len(speeds))])
            continue
        gmacs = "–" if row["gmacs"] is None else _rounded(row["gmacs"])
        speed = [_speed(row, column.get(row["model"])) for column in columns]
        lines.append([f"`{row['model']}`", _size(row), f"{row['params_m']:.2f}", gmacs, *speed])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"{number}. {_conditions(results)}" for number, results in enumerate(measured, 1))
    write_text(f"# Model zoo\n\n{INTRODUCTION}\n\n{table}\n\n{notes}\n", path)


INTRODUCTION = """\
GMACs are multiply-accumulates of matrix products, convolutions and attention for one image of the size under *input*,
in pixels. Images per second are medians, with random inputs and weights, under the conditions below the table."""


def _size(row: Mapping[str, Any]) -> str:
    return f"{row.get('img_height', row['img_size'])}×{row['img_size']}"


def _speed(row: Mapping[str, Any], found: Mapping[str, Any] | None) -> str:
    return "–" if found is None or _size(found) != _size(row) else _rounded(found["images_per_second"])


def _rounded(value: float) -> str:
    """Round to three digits, the precision of a measurement."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value))) if value else 0}f}"


def _conditions(results: Results) -> str:
    hardware = results["hardware"]
    where = hardware["name"] + (f", threads: {hardware['threads']}" if "threads" in hardware else "")
    versions = ", ".join(f"{name} {found}" for name, found in results["versions"].items() if found)
    revision = (results["git_revision"] or "unknown").replace("-dirty", " with changes")
    what = "training, forward, backward and AdamW" if results["train"] else "inference"
    layout = ", channels last" if results["channels_last"] else ""
    extra = f", arguments `{results['model_kwargs']}`" if results["model_kwargs"] else ""
    command = re.sub(r"^eval\.py", "python eval.py", results["command"])
    return (
        f"{where}: {what}, {results['precision']}, batch size {results['batch_size']}{layout}{extra}; "
        f"{versions}; revision {revision}. `{command}`"
    )
