"""Trainings of classifiers whose weights after the last epoch are shown the test images."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from visionattn.cli.errors import run
from visionattn.cli.train import main as train
from visionattn.evaluation import ClassificationResult, ImageOptions, evaluate_classifier, load_model


def train_and_test(
    name: str, options: Iterable[str], root: Path, runs: Path
) -> tuple[dict[str, Any], ClassificationResult]:
    """Do the run of this name, or go on with it where it stopped.

    Args:
        name: Name of the run.
        options: Further options of the command line.
        root: Images, in train/ and test/.
        runs: Folder for the trainings.

    Returns:
        The summary of the training, and the result on the test images.

    Raises:
        SystemExit: The training failed; its error is printed.
    """
    words = [f"--data.root={root}", f"--runs={runs}", f"--run_name={name}", "--ckpt_path=last"]
    if run(train, ["fit", *options, *words]):
        raise SystemExit(1)
    newest = max((runs / name).glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    summary = json.loads((newest.parents[1] / "summary.json").read_text(encoding="utf-8"))
    images = ImageOptions(name="folder", root=str(root), split="test", num_workers=0)
    return summary, evaluate_classifier(load_model(newest), images, device="cpu")
