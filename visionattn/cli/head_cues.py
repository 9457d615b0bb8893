"""``visionattn heads --cues``: which heads carry which of two cues in conflict."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionattn.analysis.cues import ORDERS, SIZES, CueStudy, CueWins, Effect, SideCut, cut_sides, measure_cues
from visionattn.analysis.heads import Head, HeadLayer, HeadValues, head_layers, head_name
from visionattn.checks import check_range
from visionattn.cli.errors import UsageError
from visionattn.cli.progress import show_progress
from visionattn.cli.report import mean_cell, print_table
from visionattn.data.conflicts import Conflicts
from visionattn.data.dominoes import Dominoes
from visionattn.data.images import image_mode
from visionattn.data.sources import open_source
from visionattn.errors import UserError
from visionattn.evaluation.device import resolve_device
from visionattn.evaluation.drawing import spread
from visionattn.evaluation.source import LoadedModel
from visionattn.output import check_writable, write_json
from visionattn.viz.cues import save_cue_figure
from visionattn.viz.figure import check_suffix
from visionattn_kernels.provenance import provenance


def study_cues(
    loaded: LoadedModel,
    root: str,
    num_images: int = 1000,
    sizes: Sequence[int] = SIZES,
    orders: int = ORDERS,
    heads: Sequence[Head] | None = None,
    batch_size: int = 100,
    download: bool = False,
    device: str = "auto",
    seed: int = 0,
    output: Path | None = None,
    plot: Path | None = None,
) -> tuple[CueStudy, list[SideCut]]:
    """Find the heads that carry the digit and those that carry the photo, cut them, and print which cue wins.

    Args:
        loaded: A model that was trained on dominoes.
        root: Folder with MNIST/raw and cifar10.
        num_images: Number of conflicts, evenly spaced among 10,000.
        sizes: Numbers of heads to cut from each side.
        orders: Number of random orders of heads to compare with.
        heads: Heads to study; by default all.
        batch_size: Images per step.
        download: Let torchvision download CIFAR-10 if it is missing.
        device: auto, cpu, cuda, cuda:1, …
        seed: Seed of the random orders.
        output: JSON file for the results.
        plot: Image of the results, .png, .pdf or .svg.

    Returns:
        Cues in the network and its heads, and which cue wins without some of them.

    Raises:
        UserError: The model is of other classes, or it has no heads.
        DataError: The data are missing.
    """
    check_range("num_images", num_images, 2, error=UsageError)
    check_writable(plot, json=output)
    if plot:
        check_suffix(plot)
    resolved = resolve_device(device)
    layers = head_layers(loaded.model, loaded.name)
    pairs = open_conflicts(loaded, root, num_images, batch_size, resolved, download=download)
    network = loaded.model.to(resolved).eval()
    chosen = [head for layer in layers for head in layer.heads] if heads is None else heads
    study = measure_cues(network, layers, chosen, pairs, show_progress)
    cuts = cut_sides(network, layers, study.heads, pairs, sizes, orders, seed, show_progress)
    if output:
        found = {"model": loaded.name, **study.to_dict(), "cuts": [cut.to_dict() for cut in cuts]}
        write_json({**found, **provenance(resolved)}, output)
    if plot:
        save_cue_figure(_effect_maps(layers, study.heads), _digit_wins(study, cuts), plot, Path(loaded.name).name)
    print_cues(study, cuts)
    return study, cuts


def open_conflicts(
    loaded: LoadedModel, root: str, num_images: int, batch_size: int, device: torch.device, *, download: bool = False
) -> Conflicts:
    """Open images of conflicting cues for a model.

    Raises:
        UserError: The model has other classes.
        DataError: The data are missing.
    """
    mode = image_mode(loaded.spec.preprocessing["input_size"][0])
    source = open_source("dominoes", str(Path(root).expanduser()), "test", mode=mode, download=download)
    assert isinstance(source, Dominoes)
    names = list(source.class_to_idx or ())
    if loaded.spec.class_names != names:
        raise UserError(
            f"{loaded.name} does not have the classes of dominoes, {names[0]}, {names[1]}, …: train a model with "
            "visionattn fit --config analysis/dominoes"
        )
    places = spread(len(source), num_images)
    return Conflicts(source, places, loaded.transform(), batch_size, device)


def print_cues(study: CueStudy, cuts: Sequence[SideCut]) -> None:
    """Print the heads with their effects, and which cue wins before and after cuts."""
    cells = [
        {"head": head_name(head), "another digit": _effect(found, "digit"), "another photo": _effect(found, "photo")}
        for head, found in study.heads.items()
    ]
    whole = {"another digit": _change(study.other_digit), "another photo": _change(study.other_photo)}
    title = f"Change of logit(digit) - logit(photo) if a head sees another cue; {study.wins.num_images:,} conflicts"
    print_table([*cells, {"head": "the whole network", **whole}], title=title)
    groups: dict[tuple[str, int], list[SideCut]] = defaultdict(list)
    for cut in cuts:
        groups[cut.side, len(cut.heads)].append(cut)
    rows = [{"heads cut": "none", **_win_cells([study.wins])}]
    for (side, number), same in groups.items():
        which = f"{len(same)} orders" if side == "random" else " ".join(map(head_name, same[0].heads))
        rows.append({"heads cut": f"{number} {side}: {which}", **_win_cells([cut.wins for cut in same])})
    print_table(rows, title="Which cue wins, in % of the conflicts")


def _effect(found: dict[str, Any], cue: str) -> str:
    return _change(Effect(found[cue], found[f"{cue}_se"]))


def _change(effect: Effect) -> str:
    return f"{effect.mean:+.3f} ± {effect.se:.3f}"


def _win_cells(wins: Sequence[CueWins]) -> dict[str, str]:
    return {
        "digit wins": mean_cell((each.digit_wins for each in wins), digits=1),
        "margin": mean_cell((each.margin.mean for each in wins), 1),
        "top-1 is the digit": mean_cell((each.top1_digit for each in wins), digits=1),
        "the photo": mean_cell((each.top1_photo for each in wins), digits=1),
        "neither": mean_cell((each.top1_other for each in wins), digits=1),
    }


def _effect_maps(layers: Sequence[HeadLayer], values: HeadValues) -> dict[str, Any]:
    """Return the effect of each head by cue, [layers, heads], NaN where there is no head."""
    maps = {cue: np.full((len(layers), max(layer.num_heads for layer in layers)), np.nan) for cue in ("digit", "photo")}
    for head, found in values.items():
        for cue, values_of_cue in maps.items():
            values_of_cue[head] = found[cue]
    return maps


def _digit_wins(study: CueStudy, cuts: Sequence[SideCut]) -> dict[str, dict[int, list[float]]]:
    """Return how often the digit wins, by side and number of heads, from no heads on."""
    found: dict[str, dict[int, list[float]]] = {}
    for cut in cuts:
        by_number = found.setdefault(cut.side, {0: [study.wins.digit_wins]})
        by_number.setdefault(len(cut.heads), []).append(cut.wins.digit_wins)
    return found
