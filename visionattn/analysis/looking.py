"""Sheets of what a model sees, by their kinds: the work of `visionattn look`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from visionattn.analysis.attention_sheets import draw_attention, draw_rollout, draw_window
from visionattn.analysis.feature_sheets import draw_gradcam, draw_pca, draw_saliency
from visionattn.analysis.subject import LookOptions, NoSheetError, Subject
from visionattn.checks import check_choice

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
    drawn = 0
    reasons = []
    for kind in show or SHEETS:
        try:
            yield kind, SHEETS[kind].draw(subject, options or LookOptions())
            drawn += 1
        except NoSheetError as error:
            if show:
                raise
            reasons.append(f"no {kind} sheet: {error}")
            announce(reasons[-1])
    if not drawn:
        raise NoSheetError(reasons[0])
