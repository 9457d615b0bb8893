"""The command `visionattn`: what `train.py` and `eval.py` do, and exports, wherever the package is installed."""

import sys
from collections.abc import Callable
from importlib import import_module

from visionattn.cli.errors import UsageError, run
from visionattn.suggestions import suggest

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("visionattn.cli.train", "train, validate, test and apply models, as train.py does"),
    "eval": ("visionattn.cli.evaluate", "evaluate and probe models, as eval.py does"),
    "export": ("visionattn.export.commands", "write models as hub folders, ONNX files and programs"),
}
"""By name, the module whose `main` runs the command, and what it does."""

USAGE = "\n".join(
    [
        "usage: visionattn COMMAND ...",
        "",
        "A vision model zoo for local and object-centric attention.",
        "",
        *(f"  {name:8}{what}" for name, (_, what) in COMMANDS.items()),
        "",
        "visionattn COMMAND --help lists the options of a command; --version prints the version. With --debug, an",
        "error comes with its traceback.",
    ]
)


def dispatch(argv: list[str]) -> None:
    """Runs the command that the first word names.

    Raises:
        UsageError: There is none, or an unknown one.
    """
    name, rest = (argv[0], argv[1:]) if argv else ("", [])
    if name in ("-h", "--help"):
        print(USAGE)
    elif name in COMMANDS:
        command: Callable[..., None] = import_module(COMMANDS[name][0]).main
        command(rest, prog=f"visionattn {name}")
    elif name:
        raise UsageError(f"unknown command {name!r}{suggest(name, COMMANDS) or f'; choose from {_names()}'}")
    else:
        raise UsageError(f"a command is wanted: {_names()}")


def _names() -> str:
    return ", ".join(COMMANDS)


def main() -> int:
    """The console script; returns the exit status."""
    return run(dispatch)


if __name__ == "__main__":
    sys.exit(main())
