"""Sheets of what a model sees, by their kinds: the work of `visionattn look`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from visionattn.analysis.attention_sheets import draw_attention, draw_rollout, draw_window
from visionattn.analysis.feature_sheets import draw_gradcam, draw_pca, draw_saliency
from visionattn.analysis.subject import LookOptions, NoSheetError, Subject, prepare_subject
from visionattn.checks import check_choice
from visionattn.data.unlabelled import Images
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
        announce: Called with a line for each kind that the model does not have, if kinds are not named.

    Yields:
        The kind of a sheet and its bytes `[H, W, 3]`.

    Raises:
        ValueError: An unknown kind, one that the model does not have, or no kind that it has.
    """
    for kind in show or ():
        check_choice("show", kind, SHEETS)
    missing = []
    for kind in show or SHEETS:
        try:
            sheet = SHEETS[kind].draw(subject, options or LookOptions())
        except NoSheetError as error:
            if show:
                raise
            missing.append(f"no {kind} sheet: {error}")
            continue
        yield kind, sheet
    if len(missing) == len(SHEETS):
        raise NoSheetError(missing[0])
    for line in missing:
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
        max_images: Number of images; of more, as many are taken, evenly spaced.
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
