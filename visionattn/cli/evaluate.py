"""The commands of eval.py."""

from typing import Any

from jsonargparse import ArgumentParser, auto_cli

from visionattn.cli.classify import classify
from visionattn.cli.errors import ConciseParser
from visionattn.cli.kernels import kernels
from visionattn.cli.reid import reid
from visionattn.cli.throughput import throughput

COMMANDS: dict[str, Any] = {"classify": classify, "kernels": kernels, "reid": reid, "throughput": throughput}


class EvaluationParser(ConciseParser, ArgumentParser):
    """Options from the commands' signatures and docstrings."""


def main(argv: list[str]) -> None:
    """Runs one command, as ``visionattn.cli.errors.run`` wants it."""
    auto_cli(COMMANDS, args=argv, as_positional=False, parser_class=EvaluationParser, prog="eval.py")
