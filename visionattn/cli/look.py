"""The command ``visionattn look``: sheets of what a model sees in images."""

from pathlib import Path
from typing import Any

from visionattn.analysis.looking import SHEETS, draw_sheets
from visionattn.analysis.subject import LookOptions, load_random, prepare_subject
from visionattn.checks import check_choice, check_range
from visionattn.cli.errors import UsageError
from visionattn.cli.parsing import run_with_words
from visionattn.cli.predict import read_places, short_options
from visionattn.cli.progress import show_progress
from visionattn.evaluation.device import resolve_device
from visionattn.evaluation.source import find_model
from visionattn.output import check_folder, check_writable
from visionattn.probing.frozen import Layer
from visionattn.training import Weights


def look(
    model: str,
    images: list[str],
    show: list[str] | None = None,
    output: Path = Path("look"),
    blocks: list[int] | None = None,
    heads: list[int] | None = None,
    point: list[float] | None = None,
    layer: Layer | None = None,
    class_name: str | None = None,
    max_images: int = 16,
    height: int = 160,
    random: bool = False,
    architecture: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    img_size: int | None = None,
    crop_pct: float | None = None,
    device: str = "auto",
) -> None:
    """Draw what a model sees in images: a sheet for each kind, with a row for each image.

    Args:
        model: a checkpoint, a head of linear or probe (.json), or a registered model, whose published weights are used.
        images: image files, and folders of images; - reads their names from standard input, one in a line.
        show: kinds of sheets, separated by commas: attention, rollout, window, pca, gradcam, saliency; by default
            all that the model has.
        output: folder of the sheets, KIND.png each; or a .png file for a single kind.
        blocks: of attention, rollout and window, numbers of blocks with attention through the whole network, from the
            last if negative; by default the last, for rollout four depths, for window the last on each size of map.
        heads: of attention and window, numbers of heads; by default all, at most 12.
        point: of window, a point x,y in shares of width and height from the upper left corner; by default the centre.
        layer: of pca and gradcam, last, or the number of a block (in hierarchical models, of a stage), from the last if
            negative.
        class_name: of gradcam and saliency, name or number of the class; by default the predicted one.
        max_images: largest number of images; of more images, this many are drawn, evenly spaced.
        height: height of an image on the sheet in pixels.
        random: draw the model with random weights, to compare with.
        architecture: registered model, for a file of weights that does not name it.
        model_kwargs: further arguments for the model, such as {"img_size": 96}.
        weights: for a checkpoint that holds a moving average: the average or the raw weights.
        img_size: height and width in pixels; by default, as crop_pct, that of the model's preprocessing.
        crop_pct: part of the resized image's edge that is kept.
        device: auto, cpu, cuda, cuda:1, …
    """
    from visionattn.viz.image import save_image

    check_range("max_images", max_images, 1, error=UsageError)
    check_range("height", height, 32, 1024, error=UsageError)
    for kind in show or ():
        check_choice("show", kind, SHEETS, error=UsageError)
    one_file = output.suffix.lower() == ".png"
    if one_file and len(show or ()) != 1:
        raise UsageError(f"{output} holds one sheet: choose it with --show, or name a folder")
    if output.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        raise UsageError(f"{output}: sheets are .png files; name {output.with_suffix('.png').name}, or a folder")
    if random and (architecture or weights != "average"):
        raise UsageError("--random has no weights to load: leave out --architecture and --weights")
    (check_writable if one_file else check_folder)(output)
    resolve_device(device)
    places = list(read_places(images))
    options = LookOptions(blocks, heads, point or (0.5, 0.5), layer, class_name, height)
    if random:
        loaded = load_random(model, model_kwargs)
    else:
        source = find_model(model, architecture, weights=weights, model_kwargs=model_kwargs)
        loaded = source.load("look at", remedy="; --random draws them")
    with short_options():
        subject = prepare_subject(
            loaded,
            places,
            max_images=max_images,
            img_size=img_size,
            crop_pct=crop_pct,
            device=device,
            announce=print,
            progress=show_progress,
        )
    for kind, sheet in draw_sheets(subject, show, options, announce=print):
        path = save_image(sheet, output if one_file else output / f"{kind}.png")
        print(f"{path}: {SHEETS[kind].shows}")


def main(argv: list[str], prog: str = "visionattn") -> None:
    """Run the command, as ``visionattn.cli.errors.run`` expects."""
    run_with_words(look, argv, prog)
