"""The command `visionattn`: all commands of train.py and eval.py, and exports, wherever the package is installed."""

import sys
from importlib import import_module

from visionattn.cli.errors import UsageError, run
from visionattn.suggestions import suggest

TRAINING, EVALUATION = "visionattn.cli.train", "visionattn.cli.evaluate"
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "train and apply": {
        "finetune": ("visionattn.cli.finetune", "train a pretrained model on a folder of images"),
        "linear": ("visionattn.cli.linear", "train a head on a frozen model, for a folder of images"),
        "fit": (TRAINING, "train a model"),
        "validate": (TRAINING, "measure it on the validation split"),
        "test": (TRAINING, "measure it on the test split"),
        "predict": ("visionattn.cli.predict", "predict the classes of images"),
        "embed": ("visionattn.cli.embed", "features of images in a file"),
        "search": ("visionattn.cli.search", "the most similar images of a folder"),
    },
    "evaluate": {
        "classify": (EVALUATION, "top-1 and top-5 accuracy of a classifier"),
        "reid": (EVALUATION, "mAP, mINP and CMC of re-identification"),
        "discover": (EVALUATION, "FG-ARI and mBO of slots that find objects"),
        "throughput": (EVALUATION, "images/s, parameters, MACs and memory of models"),
    },
    "analyse": {
        "look": ("visionattn.cli.look", "sheets of what a model sees: attention, features, saliency"),
        "probe": (EVALUATION, "accuracy of heads on features of frozen backbones"),
        "probe-seg": (EVALUATION, "mean IoU of segmentation from patches of frozen backbones"),
        "leaderboard": (EVALUATION, "table of results of probe"),
        "binding": (EVALUATION, "whether features tell that two patches share an object"),
        "heads": (EVALUATION, "which attention heads matter, what they do, and models without some of them"),
        "kernels": (EVALUATION, "images of a Terminator's hyper-kernels"),
    },
    "export and set up": {
        "export": ("visionattn.cli.export", "hub folders, ONNX files, programs; converted weights"),
        "completion": ("visionattn.completion", "script that completes commands and options in bash, zsh, tcsh"),
    },
}
"""By group and name, the module whose `main` runs the command, and what the command does."""

COMMANDS = {name: module for commands in GROUPS.values() for name, (module, _) in commands.items()}
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
        import_module(PARENTS[name]).main(rest, prog=f"visionattn {name}")
    elif name in COMMANDS:
        import_module(COMMANDS[name]).main(argv, prog="visionattn")
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
