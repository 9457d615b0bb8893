"""A classifier from a frozen backbone and a folder of images: a head that is trained on cached features."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visionattn.data import DataError, ImageClassificationData
from visionattn.data.file_sources import UNNAMED
from visionattn.data.loading import OnError
from visionattn.errors import UserError
from visionattn.evaluation.device import Precision
from visionattn.evaluation.source import LoadedModel
from visionattn.io import slug
from visionattn.probing.options import FeatureOptions, HeadTraining, ProbingData
from visionattn.probing.requests import HeadRequest
from visionattn.probing.results import ProbingResult
from visionattn.probing.session import ProbingSession
from visionattn.progress import ShowProgress, no_progress
from visionattn.tasks.finetuning import VAL_SHARE
from visionattn.training.preprocessing import describe_preprocessing
from visionattn.training.runs import new_run

FILE = "head"
"""Name of the file of a head, without its suffix."""


@dataclass(frozen=True)
class FittedHead:
    """A trained head.

    Attributes:
        result: its accuracy on the validation images.
        file: the ``.json`` file, which `visionattn.load_model` reads.
        class_names: a name for each class, in order.
        about: backbone and data, as `ProbingSession.describe` gives them.
    """

    result: ProbingResult
    file: Path
    class_names: list[str]
    about: Mapping[str, Any]


def fit_head(
    loaded: LoadedModel,
    folder: str | Path,
    head: str = "linear",
    *,
    val_share: float | None = None,
    img_size: int | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    on_error: OnError = "raise",
    training: HeadTraining | None = None,
    features: FeatureOptions | None = None,
    output: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: Precision = "32-true",
    progress: ShowProgress = no_progress,
    announce: Callable[[str], object] | None = None,
) -> FittedHead:
    """Train a head on features of a frozen model, and write the classifier that both make.

    Features are cached, so that a second head on the same images does not need the model. Learning rate and epoch are
    chosen on a tenth of the training images.

    Args:
        loaded: the model, as `visionattn.load_model` returns it; its classifier is not used.
        folder: images, in a folder for each class, or in such folders in ``train`` and ``val``.
        head: linear, ep_8 and any other ep_M, or another head of `list_heads`.
        val_share: share of each class to validate on; by default a fifth if the folder has no validation images.
        img_size: height and width in pixels; by default that of the model's preprocessing.
        batch_size: images per step of the model.
        num_workers: loader processes.
        on_error: treatment of images that cannot be read: raise or skip.
        training: how the head is trained.
        features: which features, and where they are cached.
        output: folder for the files of the head; by default a new one, ``runs/FOLDER-MODEL-HEAD/NUMBER``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        precision: precision of the model.
        progress: shows the progress of each phase.
        announce: called with lines that say how images are prepared and divided.

    Raises:
        UserError: random weights, an unknown head, or one that leaves no file.
        DataError: images that are missing, or of fewer than two classes.
        ValueError: a head that does not fit the model.
    """
    request = HeadRequest(head)
    if head == "knn":
        raise UserError("knn has no head to write: take linear, or compare it by visionattn probe --heads knn,linear")
    if loaded.origin.weights == "probe":
        raise UserError(f"{loaded.name} is a head on a frozen backbone: give the backbone, by its name or file")
    loaded.require_weights("train a head on")
    root = str(folder)
    if val_share is None and ImageClassificationData(root=root, val_share=VAL_SHARE).divides_itself:
        val_share = VAL_SHARE
    data = ProbingData(
        name="folder",
        root=root,
        val_share=val_share,
        img_size=img_size,
        batch_size=batch_size,
        num_workers=num_workers,
        on_error=on_error,
    )
    session = ProbingSession(
        loaded, data, features, training or HeadTraining(), device=device, precision=precision, progress=progress
    )
    if len(session.class_names) < 2:
        found = "no class folders" if session.class_names == [UNNAMED] else f"one class, {session.class_names[0]!r}"
        raise DataError(f"{root} has {found}: a folder for each of several classes is expected")
    if announce is not None:
        announce(describe_preprocessing(session.backbone.preprocessing, loaded.spec.preprocessing, loaded.name))
        if val_share is not None:
            announce(f"validation: {val_share:.0%} of each class of {root}, the same images every time")
    (result,) = session.run([request])
    if output is None:
        output = new_run(Path("runs"), slug(f"{Path(root).resolve().name}-{loaded.spec.model}-{head}")).path
    return FittedHead(result, session.export(result, output, FILE), session.class_names, session.describe())
