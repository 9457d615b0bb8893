"""Sheets of what a model sees, by their kinds: the work of `visionattn look`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from visionattn.analysis.attention_sheets import draw_attention, draw_rollout, draw_window
from visionattn.analysis.feature_sheets import draw_gradcam, draw_pca, draw_saliency, find_class
from visionattn.analysis.subject import LookOptions, NoSheetError, Subject, prepare_subject
from visionattn.checks import check_choice
from visionattn.data.unlabelled import Images
from visionattn.errors import UserError
from visionattn.evaluation.prediction import name_classes
from visionattn.evaluation.source import LoadedModel, load_model

if TYPE_CHECKING:
    from visionattn.viz.image import Pixels


class Sheet(NamedTuple):
    """A kind of sheet.

    Attributes:
        draw: Returns the sheet as bytes `[H, W, 3]`; raises a `NoSheetError` if the model has no such sheet.
        shows: What it shows, for the help.
    """

    draw: "Callable[[Subject, LookOptions], Pixels]"
    shows: str


SHEETS: Mapping[str, Sheet] = {
    "attention": Sheet(draw_attention, "attention of the class token, for each head"),
    "rollout": Sheet(draw_rollout, "attention rollout of the class token, through all blocks"),
    "window": Sheet(draw_window, "attention of a point over its window, for each head"),
    "pca": Sheet(draw_pca, "principal components of patch features as colours that agree over all images"),
    "gradcam": Sheet(draw_gradcam, "Grad-CAM: the parts of a layer that raise the score of a class"),
    "saliency": Sheet(draw_saliency, "SmoothGrad and integrated gradients: the pixels that a class score depends on"),
}
"""The kinds of sheets, in the order in which they are drawn."""


def draw_sheets(
    subject: Subject,
    show: Sequence[str] | None = None,
    options: LookOptions | None = None,
    *,
    announce: Callable[[str], object] = lambda line: None,
) -> "Iterator[tuple[str, Pixels]]":
    """Draw sheets, one by one.

    Args:
        subject: The model and its images.
        show: Kinds of sheets; by default all that the model has.
        options: Options of the sheets.
        announce: Called with a line for each reason why the model does not have some kinds, if kinds are not named.

    Yields:
        The kind of a sheet and its bytes `[H, W, 3]`.

    Raises:
        ValueError: An unknown kind or class, a kind that the model does not have, or no kind that it has.
    """
    for kind in show or ():
        check_choice("show", kind, SHEETS)
    options = options or LookOptions()
    if options.class_name is not None and subject.loaded.spec.num_classes:
        find_class(options.class_name, name_classes(subject.loaded)[0])  # before the work
    missing: dict[str, list[str]] = {}  # kinds by the reason
    drawn = False
    for kind in show or SHEETS:
        try:
            sheet = SHEETS[kind].draw(subject, options)
        except NoSheetError as error:
            if show:
                raise
            missing.setdefault(str(error), []).append(kind)
            continue
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"the {kind} sheet of {subject.loaded.name}: {error}") from error
        drawn = True
        yield kind, sheet
    lines = [f"no {', '.join(kinds)} sheet: {reason}" for reason, kinds in missing.items()]
    if not drawn:
        raise NoSheetError(lines[0])
    for line in lines:
        announce(line)


def look(
    model: str | Path | LoadedModel,
    images: str | Path | Image.Image | Images,
    *,
    show: str | Sequence[str] | None = None,
    max_images: int = 16,
    img_size: int | None = None,
    crop_pct: float | None = None,
    device: str = "auto",
    **options: Any,
) -> "dict[str, Pixels]":
    """Draw what a model sees in images.

    Args:
        model: Name of a registered model, path of a checkpoint, or what `visionattn.load_model` returns.
        images: Files and folders, or images in memory.
        show: Kinds of sheets, such as "attention"; by default all that the model has.
        max_images: Largest number of images; of more images, this many are taken, evenly spaced.
        img_size: Height and width in pixels; by default, as crop_pct, that of the model's preprocessing.
        crop_pct: Part of the resized image's edge that is kept.
        device: auto, cpu, cuda, cuda:1, …
        **options: Options of sheets, such as ``blocks``, ``heads`` and ``point``; see `LookOptions`.

    Returns:
        Sheets as bytes `[H, W, 3]`, by kind.

    Raises:
        ValueError: An unknown model, no images, or a sheet that the model does not have.
    """
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    chosen = LookOptions(**options)
    subject = prepare_subject(
        loaded, images, max_images=max_images, img_size=img_size, crop_pct=crop_pct, device=device
    )
    return dict(draw_sheets(subject, [show] if isinstance(show, str) else show, chosen))
