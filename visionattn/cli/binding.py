"""``eval.py binding``: probes of object binding on the layers of frozen backbones."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from visionattn.checks import check_range
from visionattn.cli.errors import UsageError
from visionattn.cli.frozen import FrozenModels, FrozenRun
from visionattn.cli.progress import show_progress
from visionattn.cli.report import mean_cell, print_table, print_unreadable
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.objects.binding import ProbeTraining
from visionattn.objects.clicks import LOGIT_PROBES, click_objects
from visionattn.objects.experiments import REQUIRED_PROBES, Experiments, Interventions
from visionattn.objects.results import BindingResults, BindingRow, best_layer
from visionattn.objects.session import DEFAULT_PROBES, BindingData, BindingSession
from visionattn.output import check_folder, check_writable, write_csv, write_json
from visionattn.probing.rows import grouped
from visionattn.training import Weights
from visionattn.viz.binding import save_depth_curves, save_similarity_sheet
from visionattn.viz.figure import check_suffix
from visionattn.words import counted
from visionattn_kernels.provenance import provenance

DATA, TRAINING, INTERVENTIONS = BindingData(), ProbeTraining(), Interventions()
ALL: list[Literal["all"] | int] = ["all"]
CONDITION = attrgetter("layer", "change", "amount", "subspace")
RATES = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "auc": "AUC"}  # with their headings


def binding(
    model: list[str] | None = None,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    control: Literal["random"] | None = None,
    layers: list[Literal["all"] | int] = ALL,
    probes: list[str] = DEFAULT_PROBES,
    data: BindingData = DATA,
    training: ProbeTraining = TRAINING,
    interventions: Interventions = INTERVENTIONS,
    seeds: int = 1,
    device: str = "auto",
    precision: Precision = "32-true",
    output: Path | None = None,
    csv: Path | None = None,
    plot: Path | None = None,
    overlays: Path | None = None,
    num_examples: int = 12,
) -> None:
    """Evaluate whether probes can tell if two patches lie on the same object, at each layer of frozen backbones.

    Probes of all layers train at once. The table shows each probe's best layer on val; the files hold all layers.

    Args:
        model: names of registered models, separated by commas.
        checkpoint: file of train.py (any task) or heads; with --model also a plain state dict or .safetensors file.
        pretrained: download the published weights of the models.
        model_kwargs: further arguments of each model, such as {"img_size": 64}.
        weights: for a checkpoint with a moving average, use the average or the raw weights.
        control: random also evaluates the same architectures with random weights.
        layers: all, or numbers of blocks or stages, separated by commas, from 0, or from the last if negative.
        probes: separated by commas: quadratic, quadratic_full, diagonal, linear, class, identity, cosine, dot.
        data: scenes.
        training: probes and their training.
        interventions: changes of tokens.
        seeds: number of runs, with seeds from --training.seed; each has its own random backbone.
        device: auto, cpu, cuda, cuda:1, …
        precision: precision of the backbone, as --trainer.precision; probes are trained in single precision.
        output: JSON file for the results.
        csv: CSV file for the results of the probes.
        plot: image of accuracy against depth, .png, .pdf or .svg.
        overlays: folder for images of the patches that the first probe takes for the object of a click (first seed).
        num_examples: number of scenes of val to draw there, evenly spaced.
    """
    models = FrozenModels(
        model, checkpoint, pretrained, model_kwargs, weights, control is not None, seeds, training.seed
    )
    if overlays and probes[0] not in LOGIT_PROBES:
        raise UsageError(f"--overlays draws the first probe: name one of {', '.join(LOGIT_PROBES)} before {probes[0]}")
    check_writable(plot, json=output, csv=csv)
    check_folder(overlays)
    check_range("num_examples", num_examples, 1, error=UsageError)
    if plot:
        check_suffix(plot)
    resolved = resolve_device(device)
    required = () if interventions.layers is None else REQUIRED_PROBES
    options = {"data": asdict(data), "training": asdict(training), "intervention_options": asdict(interventions)}
    settings = {**options, "precision": precision, **provenance(resolved)}
    results = BindingResults()

    def open_session(run: FrozenRun) -> tuple[BindingSession, Experiments | None]:
        session = BindingSession(
            models.load(run),
            data=data,
            training=replace(training, seed=run.seed),
            probes=list(dict.fromkeys([*probes, *required])),
            layers=None if layers == ALL else layers,  # type: ignore[arg-type]
            device=resolved,
            precision=precision,
            progress=show_progress,
        )
        return session, None if interventions.layers is None else Experiments(session, interventions)

    def save(found: BindingResults) -> None:
        results.extend(found)
        if output:
            write_json({**results.to_dict(), **settings}, output)
        if csv:
            write_csv([row.to_dict() for row in results.rows], csv)
        if plot:
            save_depth_curves(results.depth_curves(), results.chance, plot)

    for run in models.others:
        open_session(run)
    for run in models.runs:
        session, experiments = open_session(run)
        if run.seed == training.seed and not run.randomized:
            print(session.preparation)
        found = session.run()
        save(found)
        if experiments:
            save(experiments.run())
        if overlays and run.seed == training.seed:
            path = overlays / f"{run.file_stem(session.backbone.name)}.png"
            best = best_layer(found.rows, probes[0])
            save_similarity_sheet(*click_objects(session, probes[0], best, num_examples), path)
    print_results(results)


def print_results(results: BindingResults) -> None:
    """Print the best layer of each probe, and the experiments, for each model."""
    label = attrgetter("label")
    interventions, attention = (dict(grouped(rows, label)) for rows in (results.interventions, results.attention))
    for model, rows in grouped(results.rows, label):
        found = grouped(rows, attrgetter("probe"))
        print_table([_best_cells(same, probe) for probe, same in found], title=_title(results, rows))
        if cells := [
            {
                "change": change if layer is None else f"{change} {amount:g}",
                "after layer": "–" if layer is None else str(layer),
                "subspace": subspace,
                "semantic mIoU": mean_cell(row.semantic_miou for row in same),
                "instance mIoU": mean_cell(row.instance_miou for row in same),
            }
            for (layer, change, amount, subspace), same in grouped(interventions.get(model, ()), CONDITION)
        ]:
            print_table(cells, title=f"Segmentation by the last layer of {model}")
        if cells := [
            {"layer": str(layer), "Pearson's r": mean_cell((row.correlation for row in same), 1, 3)}
            for layer, same in grouped(attention.get(model, ()), attrgetter("layer"))
        ]:
            print_table(cells, title=f"Scores of a layer and attention in the next block of {model}")
    for session in results.models:
        print_unreadable(session, "scenes")


def _title(results: BindingResults, rows: Sequence[BindingRow]) -> str:
    first, seeds = rows[0], len({row.seed for row in rows})
    session = next(each for each in results.models if each.label == first.label)
    shares = (first.share_different, first.foreground_share_different)
    chance, on_objects = ("–" if share is None else f"{share:.1%}" for share in shares)
    return (
        f"{first.label} on {Path(first.root).name if first.root else first.dataset}, {session.num_train:,} + "
        f"{session.num_val:,} scenes, {counted(seeds, 'seed')}; {chance} of pairs are of two segments, {on_objects} of "
        "those on objects. Layers of the best accuracy on val"
    )


def _best_cells(rows: Sequence[BindingRow], probe: str) -> dict[str, str]:
    layer = best_layer(rows, probe)
    best = [row for row in rows if row.layer == layer]
    cells = {"probe": probe, "layer": str(layer), "depth": f"{best[0].depth:.2f}"}
    for heading, prefix in (("", ""), ("objects: ", "foreground_")):
        cells |= {
            heading + name: mean_cell(getattr(row, prefix + rate) for row in best) for rate, name in RATES.items()
        }
    return {**cells, "params": f"{best[0].num_parameters:,}"}
