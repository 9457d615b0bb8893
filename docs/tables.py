"""Write docs/results.md from results/claims.yaml, and from the headers of configs/*.yaml.

python docs/tables.py            # writes the page
python docs/tables.py --check    # fails if that would change anything
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
CLAIMS = ROOT / "results" / "claims.yaml"
VERDICTS = ("holds", "holds in part", "does not hold", "cannot be told")
NOT_YET = "not yet."

HEAD = """\
# Results

`python docs/tables.py` writes this page from `results/claims.yaml` and from the headers of `configs/`. Speed and memory
of operators, layers and whole models are on [another page](kernels/README.md#speed), and the speed of all models is in
[the zoo](zoo.md).
"""
CLAIMS_HEAD = """\
## Claims of the papers

*Holds* and *does not hold* are about our small data sets and short trainings; the measurement says which.
"""
MEASURED_HEAD = """\
## Configurations

The header of each file has the command of the run and its hardware. *Expected* figures are from the papers, or a lower
bound for a run. *Measured* figures are ours.
"""


@dataclass(frozen=True)
class Header:
    """Comments at the top of a config.

    Attributes:
        title: the first sentence or two.
        expected: figure of the paper, or a lower bound.
        measured: our figure.
    """

    title: str
    expected: str
    measured: str


def read_header(path: Path) -> Header:
    """Return the header of a config.

    Raises:
        ValueError: a part is missing.
    """
    lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(lines)
    parts = re.fullmatch(r"(.*?)\n(python [^\n]+)\n.*?Expected: (.*?)\s+Measured: (.*)", text, re.DOTALL)
    if parts is None:
        raise ValueError(f"{path}: the header needs a title, a command, Expected: and Measured:")
    title, _, expected, measured = parts.groups()
    # What follows a line that ends with these words is about something else.
    measured = NOT_YET if measured.startswith(f"{NOT_YET}\n") else measured
    return Header(*(" ".join(part.split()) for part in (title, expected, measured)))


def page() -> str:
    """Return the text of the page."""
    recipes = (path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "base")
    paths = sorted(recipes, key=lambda path: (len(path.parts), path))
    headers = {path.relative_to(ROOT).as_posix(): read_header(path) for path in paths}
    rows = [(f"`{name}`", *map(_escape, (h.title, h.expected, h.measured))) for name, h in headers.items()]
    measured = [row for row in rows if row[-1] != NOT_YET]
    waiting = [row[:-1] for row in rows if row[-1] == NOT_YET]
    parts = [HEAD, CLAIMS_HEAD, *claims(yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))), MEASURED_HEAD]
    parts += [_table(("configuration", "trains", "expected", "measured"), measured), "## Not measured yet\n"]
    return "\n".join([*parts, _table(("configuration", "trains", "expected"), waiting)])


def claims(papers: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table of the claims of each paper, and the commands of our measurements.

    Raises:
        ValueError: a verdict is unknown.
    """
    parts = []
    for paper in papers:
        rows = []
        for found in paper["claims"]:
            if found["verdict"] not in VERDICTS:
                raise ValueError(f"{CLAIMS.name}: the verdict {found['verdict']!r} is none of {', '.join(VERDICTS)}")
            rows.append((_escape(found["claim"]), _escape(found["measured"]), found["verdict"]))
        parts += [f"### {paper['paper']}\n", _table(("claim", "measured here", "verdict"), rows)]
        if commands := paper.get("commands"):
            parts.append("\n".join(["```bash { .parse }", *commands, "```", ""]))
    return parts


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), ""])


def _escape(text: str) -> str:
    """Keep underscores and asterisks from being read as Markdown."""
    return re.sub(r"([_*|])", r"\\\1", text)


def main(argv: list[str]) -> int:
    """Update or check the page."""
    new = page()
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != new:
        if "--check" in argv:
            print("docs/results.md is out of date: run python docs/tables.py", file=sys.stderr)
            return 1
        PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
