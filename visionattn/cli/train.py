"""The commands of train.py; their list needs neither torch nor Lightning."""

from visionattn.cli.commands import KINDS, TRAINING_COMMANDS
from visionattn.cli.parsing import EvaluationParser
from visionattn.lazy import import_program

DESCRIPTION = (
    "Train models for classification, fine-grained classification, re-identification and object discovery, pretrain "
    "encoders, and apply them; test token mixers by recall. "
    f"--task ({', '.join(KINDS)}) after the command, or task: in a config file, chooses the kind of training."
)


def main(argv: list[str], prog: str = "train.py") -> None:
    """Run one command of a training, as ``visionattn.cli.errors.run`` expects."""
    first = argv[0] if argv else ""
    config = first.startswith("-") and first not in ("-h", "--help")  # -c FILE, before the command
    if first in TRAINING_COMMANDS or config:
        import_program("visionattn.cli.training").main(argv, prog)
    else:
        _list_commands(argv, prog)


def _list_commands(argv: list[str], prog: str) -> None:
    """Print the help, or raise the error of a command line without a command."""
    parser = EvaluationParser(prog=prog, description=DESCRIPTION)
    commands = parser.add_subcommands()
    for name, does in TRAINING_COMMANDS.items():
        commands.add_subcommand(name, EvaluationParser(), help=does)
    parser.parse_args(argv)
