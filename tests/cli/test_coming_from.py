"""The tables of docs/coming_from.md: every option of ours exists, and a hint leads there from the other tool's."""

import contextlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

from visionattn.__main__ import dispatch
from visionattn.cli.hints import meant_option

PAGE = Path(__file__).parents[2] / "docs" / "coming_from.md"
OPTION = re.compile(r"--([a-z][\w.]*)")


@cache
def options(command: str) -> frozenset[str]:
    """Return the options that the help of a command lists."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        dispatch([*command.split(), "--help"])
    return frozenset(re.findall(r"^ +(?:-\w [A-Z]+, |-h, )?--([\w.]+)", text.getvalue(), re.MULTILINE))


def rows() -> list[tuple[str, str, str]]:
    """Return other tool's cell, ours, and our command, of every row of a table."""
    found, command = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells or set(line) <= set("|-"):
            continue
        if "`" not in line:
            command = cells[1].removeprefix("visionattn ")
        else:
            found.append((cells[0], cells[1], command))
    return found


def test_every_option_of_ours_exists() -> None:
    assert len(rows()) > 100
    mentions = [(code, command) for _, ours, command in rows() for code in re.findall(r"`([^`]+)`", ours)]
    prose = re.findall(r"`(visionattn [^`]+)`", PAGE.read_text(encoding="utf-8"))
    for code, command in [*mentions, *((code, "") for code in prose)]:
        if code.startswith("visionattn "):
            command = code.split()[1]
        unknown = set(OPTION.findall(code)) - options(command) if "--" in code else set()
        assert not unknown, f"{command} has no option {unknown}: {code}"


@pytest.mark.parametrize("tool", ["timm train.py", "yolo classify train", "lightly_train.train"])
def test_hint_leads_from_the_other_tool_to_our_option(tool: str) -> None:
    """Of rows with one option whose name does not stand for something else here."""
    text = PAGE.read_text(encoding="utf-8").partition(f"| {tool} |")[2].partition("\n\n")[0]
    known = [f"--{name}" for name in options("fit")]
    checked = 0
    for theirs, ours, _ in rows():
        named = [word.partition("=")[0].lstrip("-") for word in re.findall(r"`([^` ]+)`", theirs)]
        if theirs not in text or len(named) != 1 or named[0] in ("checkpoint", "name", "output"):
            continue
        option = named[0].replace("-", "_")
        hint = meant_option(f"--{option}", known)
        assert set(OPTION.findall(hint)) & set(OPTION.findall(ours)), f"--{option}: {hint or 'no hint'}"
        checked += 1
    assert checked > 10
