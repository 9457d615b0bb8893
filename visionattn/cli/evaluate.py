"""The commands of eval.py."""

from typing import Any

from jsonargparse import ArgumentParser, auto_cli

from visionattn.cli.binding import binding
from visionattn.cli.classify import classify
from visionattn.cli.discover import discover
from visionattn.cli.kernels import kernels
from visionattn.cli.leaderboard import leaderboard
from visionattn.cli.parsing import ConciseParser
from visionattn.cli.probe import probe
from visionattn.cli.reid import reid
from visionattn.cli.throughput import throughput

COMMANDS: dict[str, Any] = {
    "binding": binding,
    "classify": classify,
    "discover": discover,
    "kernels": kernels,
    "leaderboard": leaderboard,
    "probe": probe,
    "reid": reid,
    "throughput": throughput,
}


class EvaluationParser(ConciseParser, ArgumentParser):
    """Options from the commands' signatures and docstrings."""


def main(argv: list[str], prog: str = "eval.py") -> None:
    """Runs one command, as ``visionattn.cli.errors.run`` wants it."""
    auto_cli(COMMANDS, args=argv, as_positional=False, parser_class=EvaluationParser, prog=prog)
