"""The command `visionattn`: all commands of train.py and eval.py, and exports, wherever the package is installed."""

import sys

from visionattn.cli.commands import COMMANDS, EVALUATION, GROUPS, TRAINING
from visionattn.cli.errors import UsageError, run
from visionattn.lazy import import_program
from visionattn.suggestions import suggest

PARENTS = {"train": TRAINING, "eval": EVALUATION, "export": COMMANDS["export"], "completion": COMMANDS["completion"]}
"""Commands with commands or words of their own; `train` and `eval` are those of 0.1.0."""

USAGE = "\n".join(
    [
        "usage: visionattn COMMAND [options]",
        "",
        "Vision models with local and object-centric attention. --version prints the version.",
        "",
        *(
            line
            for group, commands in GROUPS.items()
            for line in (f"{group}:", *(f"  {name:13}{does}" for name, (_, does) in commands.items()))
        ),
        "",
        "COMMAND -h lists the most used options, COMMAND --help all of them. --debug adds the traceback to an error.",
        "",
        "examples:",
        "  visionattn fit --config quickstart",
        "  visionattn finetune FOLDER --model nat_pico.cifar10",
        "  visionattn predict nat_pico.cifar10 IMAGES --output predictions.csv",
    ]
)


def dispatch(argv: list[str]) -> None:
    """Run the command that the first word names."""
    name, rest = (argv[0], argv[1:]) if argv else ("", [])
    names = ", ".join(COMMANDS)
    if name in ("-h", "--help"):
        print(USAGE)
    elif name in PARENTS:
        import_program(PARENTS[name]).main(rest, prog=f"visionattn {name}")
    elif name in COMMANDS:
        import_program(COMMANDS[name]).main(argv, prog="visionattn")
    elif name.startswith("-"):
        raise UsageError(f"{name} stands before the command: write visionattn COMMAND {name} ...")
    elif name:
        raise UsageError(f"unknown command {name!r}{suggest(name, COMMANDS) or f'; choose from {names}'}")
    else:
        raise UsageError(f"a command is wanted: {names}")


def main() -> int:
    """Run the console script and return its exit status."""
    return run(dispatch)


if __name__ == "__main__":
    sys.exit(main())
