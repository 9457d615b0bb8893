"""The commands of eval.py."""

from typing import Any

from jsonargparse import auto_cli

from visionattn.cli.binding import binding
from visionattn.cli.classify import classify
from visionattn.cli.discover import discover
from visionattn.cli.errors import UsageError
from visionattn.cli.heads import heads
from visionattn.cli.kernels import kernels
from visionattn.cli.leaderboard import leaderboard
from visionattn.cli.parsing import EvaluationParser
from visionattn.cli.probe import probe
from visionattn.cli.probe_seg import probe_seg
from visionattn.cli.reid import reid
from visionattn.cli.throughput import throughput

COMMANDS = (binding, classify, discover, heads, kernels, leaderboard, probe, probe_seg, reid, throughput)


def main(argv: list[str], prog: str = "eval.py") -> None:
    """Run one eval command."""
    if any(word.partition("=")[0] == "--leaderboard" for word in argv):
        raise UsageError(f"--leaderboard is a command of its own: {prog} leaderboard --results FILE …")
    options: dict[str, Any] = {"parser_class": EvaluationParser, "prog": prog, "config_help": "YAML file of options."}
    auto_cli(
        {command.__name__.replace("_", "-"): command for command in COMMANDS}, args=argv, as_positional=False, **options
    )
