"""The commands that apply a model to images, which are named without the name of an option."""

from typing import Any

from jsonargparse import auto_cli

from visionattn.cli.embed import embed
from visionattn.cli.evaluate import EvaluationParser
from visionattn.cli.search import search

COMMANDS = (embed, search)


def main(argv: list[str], prog: str = "visionattn") -> None:
    """Run one command."""
    options: dict[str, Any] = {"parser_class": EvaluationParser, "prog": prog, "config_help": "YAML file of options."}
    auto_cli({command.__name__: command for command in COMMANDS}, args=argv, **options)
