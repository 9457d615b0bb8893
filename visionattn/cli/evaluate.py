"""The commands of eval.py; only the module of the one that runs is imported."""

from collections.abc import Callable
from typing import Any

from jsonargparse import auto_cli

from visionattn.cli.commands import EVALUATION_COMMANDS
from visionattn.cli.errors import UsageError
from visionattn.cli.parsing import EvaluationParser
from visionattn.lazy import import_program


def main(argv: list[str], prog: str = "eval.py") -> None:
    """Run one eval command."""
    if any(word.partition("=")[0] == "--leaderboard" for word in argv):
        raise UsageError(f"--leaderboard is a command of its own: {prog} leaderboard --results FILE …")
    # Without a command, a config file may have options of any.
    known = bool(argv) and (argv[0] in ("-h", "--help") or not argv[0].startswith("-"))
    needed = argv[:1] if known else EVALUATION_COMMANDS
    commands: dict[str, Any] = {
        name: _find(name) if name in needed else _stand_in(EVALUATION_COMMANDS[name])
        for name in sorted(EVALUATION_COMMANDS)
    }
    options: dict[str, Any] = {"parser_class": EvaluationParser, "prog": prog, "config_help": "YAML file of options."}
    auto_cli(commands, args=argv, as_positional=False, **options)


def _find(name: str) -> Callable[..., None]:
    """Return the function of a command, which has a module of its own."""
    name = name.replace("-", "_")
    command: Callable[..., None] = getattr(import_program(f"visionattn.cli.{name}"), name)
    return command


def _stand_in(does: str) -> Callable[[], None]:
    """Return a function without options, for a command that is only listed."""

    def command() -> None: ...

    command.__doc__ = does
    return command
