"""The script with which a shell completes commands and options: `visionattn completion bash`."""

from argparse import SUPPRESS
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser, capture_parser

from visionattn.cli import embed, evaluate, export, finetune, linear, look, predict, search, training
from visionattn.cli.errors import UsageError
from visionattn.suggestions import suggest

SHELLS = ("bash", "zsh", "tcsh")


def main(argv: list[str], prog: str = "visionattn completion") -> None:
    """Print the script for a shell."""
    if argv in (["-h"], ["--help"]):
        print(f"usage: {prog} {{{','.join(SHELLS)}}}\n\nPrint a script for the shell: source <({prog} bash)")
        return
    if len(argv) != 1 or argv[0] not in SHELLS:
        raise UsageError(f"{prog} takes one of {', '.join(SHELLS)}{suggest(' '.join(argv), SHELLS)}")
    if not find_spec("shtab"):
        raise UsageError(f"{prog} needs a package that is not installed: pip install shtab")
    import shtab

    print(shtab.complete(create_parser(prog.partition(" ")[0], shtab.FILE), argv[0]))


def create_parser(prog: str, files: Any) -> ArgumentParser:
    """Return a parser with all commands; ``files`` is shtab's word for files.

    It is for completion only: each command parses with a parser of its own.
    """
    parser, below = ArgumentParser(prog=prog), ArgumentParser()
    single = {"embed": embed, "linear": linear, "look": look, "predict": predict, "search": search}
    commands = {
        **_commands(training),
        "finetune": _finetune(),
        **_commands(evaluate),
        **{name: _capture(module, [name]) for name, module in single.items()},
        "export": below,
    }
    _add_commands(parser, files, commands)
    _add_commands(below, files, _commands(export))
    return parser


def _finetune() -> Any:
    """Return the parser of ``fit``, whose options ``finetune`` takes, with the short ones and the images."""
    parser = _commands(training)["fit"]
    parser.add_argument("images", type=Path)
    for option in finetune.SHORT:
        parser.add_argument(option, type=Path if option == "--checkpoint" else str)
    return parser


def _capture(module: Any, argv: list[str]) -> Any:
    return capture_parser(lambda: module.main(argv))


def _commands(module: Any) -> dict[str, ArgumentParser]:
    captured = _capture(module, [])
    # Private: argparse and jsonargparse have no public way to list the commands, options and types of a parser.
    return dict(captured._subcommands_action.choices)


def _add_commands(parser: ArgumentParser, files: Any, commands: dict[str, ArgumentParser]) -> None:
    added = parser.add_subcommands()
    for name, command in commands.items():
        for action in command._actions:
            if action.dest in getattr(command, "hidden", ()):
                action.help = SUPPRESS
            _complete(action, files)
        added.add_subcommand(name, command, help=command.description or name)


def _complete(action: Any, files: Any) -> None:
    """Offer the words that an option takes; jsonargparse's own script holds thousands of options of classes."""
    hint = getattr(action, "_typehint", None)
    for kind in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if kind is Path or action.dest == "config" or not action.option_strings:
            action.complete = files
        elif kind is bool:
            action.choices = ["true", "false"]
        elif get_origin(kind) is Literal:
            action.choices = [*(action.choices or []), *map(str, get_args(kind))]
