"""Writes docs/results.md from the headers of configs/*.yaml: what each is expected to reach, and what was measured.

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

Made by `python docs/tables.py` of the headers of `configs/`, which have the command that was run and the hardware that
it ran on. Speeds and memory of operators, layers and whole models are on [another page](kernels/README.md#speed), those
of all models in [the zoo](zoo.md).

Figures under *expected* are those of the papers, where they have any, or the least that a run should reach; *measured*
are ours.
"""


@dataclass(frozen=True)
class Header:
    """What the comments at the top of a configuration say.

    Attributes:
        title: the first sentence or two.
        command: that the figures belong to.
        expected: what the paper, or a lower bound, says.
        measured: what was seen here.
    """

    title: str
    command: str
    expected: str
    measured: str


def read_header(path: Path) -> Header:
    """The header of a configuration.

    Raises:
        ValueError: a part is missing.
    """
    lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(lines)
    parts = re.fullmatch(r"(.*?)\n(python [^\n]+)\n.*?Expected: (.*?)\s+Measured: (.*)", text, re.DOTALL)
    if parts is None:
        raise ValueError(f"{path}: the header wants a title, a command, Expected: and Measured:")
    title, command, expected, measured = parts.groups()
    # What follows a line that ends with these words is about something else.
    measured = NOT_YET if measured.startswith(f"{NOT_YET}\n") else measured
    return Header(*(" ".join(part.split()) for part in (title, command, expected, measured)))


def page() -> str:
    """The text of the page."""
    paths = sorted((ROOT / "configs").rglob("*.yaml"), key=lambda path: (len(path.parts), path))
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
    """Names with underscores, and patterns with asterisks, are not to be read as Markdown."""
    return re.sub(r"([_*|])", r"\\\1", text)


def main(argv: list[str]) -> int:
    """Updates or checks the page."""
    new = page()
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != new:
        if "--check" in argv:
            print("docs/results.md is out of date: run python docs/tables.py", file=sys.stderr)
            return 1
        PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
