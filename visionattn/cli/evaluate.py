"""The commands of eval.py."""

import json
from typing import Any

from jsonargparse import ArgumentParser, auto_cli

from visionattn.cli.binding import binding
from visionattn.cli.classify import classify
from visionattn.cli.discover import discover
from visionattn.cli.errors import ConciseParser
from visionattn.cli.kernels import kernels
from visionattn.cli.probe import probe
from visionattn.cli.reid import reid
from visionattn.cli.throughput import throughput

COMMANDS: dict[str, Any] = {
    "binding": binding,
    "classify": classify,
    "discover": discover,
    "kernels": kernels,
    "probe": probe,
    "reid": reid,
    "throughput": throughput,
}

FILES = "--leaderboard"
"""The option that takes all files up to the next option, as shells write out a pattern."""


class EvaluationParser(ConciseParser, ArgumentParser):
    """Options from the commands' signatures and docstrings."""


def main(argv: list[str], prog: str = "eval.py") -> None:
    """Runs one command, as ``visionattn.cli.errors.run`` wants it."""
    auto_cli(COMMANDS, args=_gather(argv), as_positional=False, parser_class=EvaluationParser, prog=prog)


def _gather(argv: list[str]) -> list[str]:
    """Makes ``--leaderboard a.json b.json`` a list of files, as jsonargparse reads lists."""
    gathered: list[str] = []
    files: list[str] | None = None
    for argument in argv:
        name, equals, value = argument.partition("=")
        if name == FILES:
            files = [value] if equals else []
            gathered += [FILES, ""]
        elif files is None or argument.startswith("--"):
            files = None
            gathered.append(argument)
            continue
        else:
            files.append(argument)
        gathered[-1] = json.dumps(files)
    return gathered
