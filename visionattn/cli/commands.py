"""Names and purposes of all commands, to list them without importing what they need."""

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

TRAINING_COMMANDS = {
    "fit": "Train a model.",
    "validate": "Measure a model on the validation split.",
    "test": "Measure a model on the test split.",
    "predict": "Write the predictions for images without labels.",
}
"""The commands of train.py."""

EVALUATION_COMMANDS = {
    name: does for commands in GROUPS.values() for name, (module, does) in commands.items() if module == EVALUATION
}
"""The commands of eval.py."""

KINDS = ("classification", "fine_grained", "reid", "mae", "object_discovery", "recall")
"""The values of ``--task``, in the order of `visionattn.tasks.TASKS`."""
