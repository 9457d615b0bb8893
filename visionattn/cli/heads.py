"""``eval.py heads``: which attention heads of a network matter, what they do, and the network without some of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from visionattn.analysis.head_images import open_head_images
from visionattn.analysis.head_study import RANDOM, HeadStudy
from visionattn.analysis.heads import Head, HeadLayer, by_layer, choose_heads, head_layers, head_name, parse_heads
from visionattn.analysis.patching import Ablation
from visionattn.checks import check_choice, check_range
from visionattn.cli.errors import UsageError
from visionattn.cli.head_cues import study_cues
from visionattn.cli.head_tables import HEADINGS, cell, known_scores, print_curves, print_heads, print_roles
from visionattn.cli.progress import show_progress
from visionattn.cli.report import print_left_out, print_table
from visionattn.data import UnreadableImageError
from visionattn.errors import UserError
from visionattn.evaluation.as_trained import ImageOptions
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.pruned import check_place, check_prunable, compare_speed, save_pruned
from visionattn.evaluation.pruned import prune as prune_heads
from visionattn.evaluation.source import LoadedModel, ModelSource, load_model
from visionattn.objects.head_binding import measure_binding, open_binding_scenes
from visionattn.objects.session import BindingData
from visionattn.output import check_writable, write_csv, write_json
from visionattn.training import Weights
from visionattn.training.branches import Inference, choose_inference
from visionattn.training.models import is_elsewhere
from visionattn.viz.figure import check_suffix
from visionattn.viz.head_scores import CutCurve, save_cut_curves, save_head_maps
from visionattn.viz.image import save_image
from visionattn.words import counted
from visionattn_kernels.provenance import provenance


@dataclass(frozen=True)
class HeadImageOptions(ImageOptions):
    """Images on which heads are studied; for a model without classes, root is any folder of images.

    More arguments: `visionattn.evaluation.ImageOptions`.

    Args:
        batch_size: images per step.
    """

    batch_size: int = 16


EFFECTS = ("d_", "direct")
"""Beginnings of the names of scores that are effects, which take the most time."""

DATA, SCENES = HeadImageOptions(), BindingData()


def heads(
    checkpoint: Path | None = None,
    model: str | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    inference: Inference | None = None,
    data: HeadImageOptions = DATA,
    num_images: int = 2000,
    layers: list[int] | None = None,
    heads: list[int] | None = None,
    ablation: Ablation = "mean",
    ablate: list[str] | None = None,
    scenes: BindingData = SCENES,
    prune: list[str] | None = None,
    points: int = 8,
    random_orders: int = 5,
    cut: list[str] | None = None,
    keep: Path | None = None,
    cues: bool = False,
    output: Path | None = None,
    csv: Path | None = None,
    plot: Path | None = None,
    curves: Path | None = None,
    sheet: Path | None = None,
    device: str = "auto",
    precision: Precision = "32-true",
    seed: int = 0,
) -> None:
    """Measure which attention heads of a network matter, and what they do.

    For each head: how far it looks, how much attention its patches get from others, whether its attention depends on
    the image, whether it finds copies of a patch and patches of the same object, what the network loses without it,
    and what it adds to the logit of the true class. Of a model without classes, the loss is the change of its features.
    A run that was killed resumes when it is started again.

    Args:
        checkpoint: file that train.py wrote, or a head (.json) of linear; with --model also a plain state dict.
        model: name of a registered model.
        pretrained: fetch the weights that are published for the model.
        model_kwargs: further arguments for the model, such as {"img_size": 224}.
        weights: for a checkpoint that holds a moving average: the average or the raw weights.
        inference: for DCAL models, use both branches (combined) or self-attention only (sa).
        data: images.
        num_images: largest number of images; of more images, this many are taken, evenly spaced.
        layers: numbers of attention layers, separated by commas, from 0, or from the last if negative; by default all.
        heads: numbers of heads in these layers; by default all.
        ablation: what replaces the output of a head: its mean over images and positions, or zero.
        ablate: heads to remove together, as 3.1,4.0; 3 stands for all heads of layer 3.
        scenes: images with segments, for the binding score; measured if a name or a root is given.
        prune: scores, separated by commas, in whose order heads are removed one after the other, the lowest first, or
            with SCORE:desc the highest.
        points: numbers of removed heads at which the network is measured.
        random_orders: number of random orders beside those of --prune or of --cues.
        cut: heads to cut from the model of --keep, as 3.1,4.0; or the number of heads to cut, in the order of the first
            score of --prune, by default of the smallest effect.
        keep: .safetensors file for the smaller model, which --checkpoint of other commands takes.
        cues: for a model of the config analysis/dominoes: which of two cues in conflict wins, a digit or a photo, which
            heads carry each, and which cue wins without them; --data.root (by default data) holds MNIST/raw and
            cifar10. An interrupted study of cues starts from its beginning.
        output: JSON file for the results.
        csv: CSV file with a row for each head.
        plot: image with a map of layers × heads for each score, .png, .pdf or .svg.
        curves: image of the curves of --prune.
        sheet: .png file with the attention of each head in the first image, of 12 heads in layers that have more.
        device: auto, cpu, cuda, cuda:1, …
        precision: precision of the passes that measure effects, as --trainer.precision; scores of attention are
            computed in single precision. The backbone of a head of linear keeps the precision that the head was
            trained with.
        seed: seed of random orders and of copied patches.
    """
    check_range("num_images", num_images, 2, error=UsageError)
    check_range("points", points, 2, error=UsageError)
    check_range("random_orders", random_orders, 0, error=UsageError)
    check_writable(plot, curves, json=output, csv=csv)
    check_writable(png=sheet)
    for figure in filter(None, (plot, curves)):
        check_suffix(figure)
    if cues:
        unused: dict[str, object] = {"ablate": ablate, "prune": prune, "cut": cut, "keep": keep, "csv": csv}
        unused |= {
            "curves": curves,
            "sheet": sheet,
            "ablation": ablation != "mean",
            "precision": precision != "32-true",
        }
        _check_cue_options(unused, data, scenes)
    if (keep is None) != (cut is None):
        raise UsageError("--cut says which heads to cut, and --keep where to write the smaller model: give both")
    if keep is not None:
        check_place(keep)
    if curves and not prune:
        raise UsageError("--curves draws the curves of --prune: give scores, such as --prune d_loss,distance")
    resolved = resolve_device(device)
    loaded = ModelSource(checkpoint, model, pretrained, model_kwargs, weights).load("study")
    if inference is not None:
        choose_inference(loaded.model, loaded.spec.model, inference)
    loaded.model.to(resolved)
    found = head_layers(loaded.model, loaded.name)
    chosen = choose_heads(found, layers, heads)
    if cues:
        study_cues(
            *(loaded, data.root or "data", num_images),
            orders=random_orders,
            heads=chosen,
            batch_size=data.batch_size,
            download=data.download,
            device=device,
            seed=seed,
            output=output,
            plot=plot,
        )
        return
    removed = parse_heads(ablate or [], found)
    with_scenes = bool(scenes.name or scenes.root)
    _check_scores(prune or [], loaded, with_scenes)
    given = None if cut is None else _read_cut(cut, loaded, found, chosen)
    with _naming_scenes():
        opened = open_binding_scenes(loaded, scenes, device=resolved) if with_scenes else None
    images = open_head_images(loaded, data, num_images, resolved, announce=print)
    study = HeadStudy(loaded, images, found, chosen, ablation, precision, seed, output, show_progress)

    def save() -> None:
        if output:
            write_json({**study.to_dict(), **provenance(resolved)}, output)
        if csv:
            write_csv(study.rows(), csv)

    if sheet:
        save_image(study.draw_sheet(), sheet)
    study.measure_attention()
    if opened is not None:
        layers_of_chosen = [found[number] for number in by_layer(chosen)]
        with _naming_scenes():
            study.add(measure_binding(loaded.model, layers_of_chosen, opened, progress=show_progress))
    save()
    for word in prune or ():
        if not word.startswith(EFFECTS):
            study.order(word)  # or say that no head has this score
    study.measure_effects()
    save()
    if plot:
        scores = {
            score: {head: row.get(score) for head, row in study.values.items()} for score in known_scores(study.values)
        }
        save_head_maps(scores, plot, f"{Path(loaded.name).name}: heads")
    _print_study(study)
    if removed:
        _print_removed(study, study.remove(removed))
        save()
    if prune:
        print_curves(study.prune(prune, points, random_orders), study.figures)
        save()
        if curves:
            save_cut_curves(_panels(study), curves, f"{Path(loaded.name).name}: heads cut one after the other")
    if given is not None and keep is not None:
        first = (prune or [study.effect])[0]
        cut_heads = given if isinstance(given, list) else study.order(first)[:given]
        study.pruned = _write_pruned(study, cut_heads, keep.expanduser())
        save()
    study.finish()
    print_left_out(images.unreadable)
    if opened is not None:
        print_left_out(opened.unreadable, "scenes")


@contextmanager
def _naming_scenes() -> Iterator[None]:
    """Let errors about scenes name the options of this command."""
    try:
        yield
    except (ValueError, UnreadableImageError) as error:
        if "--data." not in str(error):
            raise
        raise UserError(str(error).replace("--data.", "--scenes.")) from error


def _check_cue_options(options: Mapping[str, object], data: HeadImageOptions, scenes: BindingData) -> None:
    """Check that no options are given that --cues does not use.

    Args:
        options: Options without use, true if they are given.
        data: Images, of which the name of the data set, its root, download and batch size are of use.
        scenes: Scenes, which are of no use.
    """
    plain = replace(
        data, root=None, download=False, batch_size=DATA.batch_size, num_workers=data.num_workers or None
    )  # images are read without workers
    if (data.name or "").partition("/")[0] == "dominoes":
        plain = replace(plain, name=None)
    for group, given, default in (("data", plain, DATA), ("scenes", scenes, SCENES)):
        changed = (field.name for field in fields(given) if getattr(given, field.name) != getattr(default, field.name))
        options = {**options, **{f"{group}.{name}": True for name in changed}}
    if named := next((name for name, value in options.items() if value), None):
        raise UsageError(f"--cues has images and measures of its own: leave out --{named}")


def _check_scores(words: Sequence[str], loaded: LoadedModel, with_scenes: bool) -> None:
    """Check before the work that the scores of --prune will be measured."""
    for word in words:
        score, _, direction = word.partition(":")
        check_choice("prune", score, HEADINGS, error=UsageError)
        if direction not in ("", "asc", "desc"):
            raise UsageError(
                f"--prune {word}: write {score} for the lowest first, or {score}:desc for the highest first"
            )
        has_classes = bool(loaded.spec.num_classes)
        if score in ("d_loss", "d_top1", "direct") and not has_classes:
            raise UsageError(f"--prune {score}: {loaded.name} has no classes; d_features is the effect on its features")
        if score == "d_features" and has_classes:
            raise UsageError(f"--prune {score}: {loaded.name} has classes; d_loss is the effect on its loss")
        if score == "binding" and not with_scenes:
            raise UsageError("--prune binding wants images with segments: give --scenes.root FOLDER")


def _read_cut(
    words: Sequence[str], loaded: LoadedModel, layers: Sequence[HeadLayer], chosen: Sequence[Head]
) -> list[Head] | int:
    """Return the heads of --cut, or their number; check before the work that the model can do without them."""
    cut: list[Head] | int
    if len(words) == 1 and words[0].isdigit():
        cut = int(words[0])
        check_range("cut", cut, 1, len(chosen), error=UsageError)
        # Which heads they are is known after the work; that a layer loses one of several is as good as any.
        tried = [(layer, 0) for layer in by_layer(chosen) if layers[layer].num_heads > 1]
    else:
        cut = tried = parse_heads(words, layers, "--cut")
    check_prunable(loaded, {layers[layer].name: numbers for layer, numbers in by_layer(tried).items()})
    return cut


def _print_study(study: HeadStudy) -> None:
    images, effects = study.images, study.effects
    title = f"{Path(study.loaded.name).name} on {counted(images.num_read, 'image')}, {study.ablation}-ablation"
    assert effects is not None
    if effects.baseline:
        title += f"; loss {effects.baseline['loss']:.4f}, top-1 {effects.baseline['top1']:.1%} with all heads"
    print_heads(study.values, study.effect, title)
    print_roles(study.values, study.effect)
    if effects.split_half is not None:
        print(f"rank correlation of {study.effect} between two halves of the images: {effects.split_half:.2f}")


def _print_removed(study: HeadStudy, removed: Mapping[str, Any]) -> None:
    row = {
        "without": ", ".join(removed["heads"]),
        **{
            label: cell(removed, name)
            for name, label in {**study.figures, study.effect: HEADINGS[study.effect]}.items()
        },
    }
    print_table([row], title="Several heads removed together")


def _panels(study: HeadStudy) -> dict[str, list[CutCurve]]:
    return {
        label: [
            CutCurve(
                name,
                [row["num_heads"] for row in curve.points],
                [row[figure] for row in curve.points],
                name.startswith(RANDOM),
            )
            for name, curve in study.curves.items()
        ]
        for figure, label in study.figures.items()
    }


def _write_pruned(study: HeadStudy, heads: Sequence[Head], path: Path) -> dict[str, Any]:
    """Write a model without heads; print and return its size, speed and outcomes beside those of the whole model."""
    smaller = prune_heads(study.loaded, *study.cut_arguments(heads))
    save_pruned(smaller, path)
    name = smaller.spec.model
    smaller = load_model(path, model=name)  # what is measured is what was written
    outcome = study.judge(smaller, heads)
    speed = compare_speed(
        study.loaded, smaller, device=study.images.device, precision=study.precision, progress=show_progress
    )
    before = outcome["whole"] or {"d_features": 0.0}
    print_table(
        [
            {
                "model": label,
                "params": f"{one.params_m:.2f} M",
                "GMACs": "–" if one.gmacs is None else f"{one.gmacs:.3f}",
                **{heading: cell(found, figure) for figure, heading in study.figures.items()},
                "img/s": f"{one.images_per_second:,.1f}",
            }
            for label, one, found in (("whole", speed.full, before), (path.name, speed.cut, outcome))
        ],
        title=f"{counted(len(heads), 'head')} cut: {', '.join(map(head_name, heads))}",
    )
    low, high = speed.ratio_quartiles
    print(f"{speed.ratio:.2f} times as fast (quartiles {low:.2f} to {high:.2f}), batches of {speed.batch_size}")
    print(f"outputs differ from those with ablated heads by {outcome['difference']:.1e} of the largest")
    print(f"{path}: as --checkpoint {path}{f' --model {name}' if is_elsewhere(name) else ''} of other commands")
    return {"file": str(path), "heads": [head_name(head) for head in heads], **outcome, "speed": speed.to_dict()}
