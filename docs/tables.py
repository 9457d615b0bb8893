"""Write docs/results.md from the headers of configs/*.yaml: expected and measured figures.

python docs/tables.py            # writes the page
python docs/tables.py --check    # fails if that would change anything
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
NOT_YET = "not yet."

HEAD = """\
# Results

`python docs/tables.py` writes this page from the headers of `configs/`. Each header has the command of the run and its
hardware. Speed and memory of operators, layers and whole models are on [another page](kernels/README.md#speed), and the
speed of all models is in [the zoo](zoo.md).

*Expected* figures are from the papers, or a lower bound for a run. *Measured* figures are ours.
"""


@dataclass(frozen=True)
class Header:
    """Comments at the top of a config.

    Attributes:
        title: the first sentence or two.
        command: command that the figures belong to.
        expected: figure of the paper, or a lower bound.
        measured: our figure.
    """

    title: str
    command: str
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
    title, command, expected, measured = parts.groups()
    # What follows a line that ends with these words is about something else.
    measured = NOT_YET if measured.startswith(f"{NOT_YET}\n") else measured
    return Header(*(" ".join(part.split()) for part in (title, command, expected, measured)))


def page() -> str:
    """Return the text of the page."""
    recipes = (path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "base")
    paths = sorted(recipes, key=lambda path: (len(path.parts), path))
    headers = {path.relative_to(ROOT).as_posix(): read_header(path) for path in paths}
    measured = [
        f"### {name}\n\n{_escape(header.title)}\n\n- command: `{header.command}`\n"
        f"- expected: {_escape(header.expected)}\n- measured: {_escape(header.measured)}\n"
        for name, header in headers.items()
        if header.measured != NOT_YET
    ]
    waiting = [
        f"| `{name}` | {_escape(header.title)} | {_escape(header.expected)} |"
        for name, header in headers.items()
        if header.measured == NOT_YET
    ]
    table = "\n".join(["| configuration | trains | expected |", "|---|---|---|", *waiting])
    return "\n".join([HEAD, "## Measured", "", *measured, "## Not measured yet", "", table, ""])


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
