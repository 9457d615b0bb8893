"""Whether patches of one object can be told from others by the features of frozen backbones, layer by layer."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from visionattn.cli.binding_images import save_overlays
from visionattn.cli.binding_interventions import WANTED, Experiments, Interventions
from visionattn.cli.binding_report import BindingReport, best_layer
from visionattn.cli.binding_run import BindingData, BindingSubject, ProbeTraining, prepare_scenes
from visionattn.cli.device import AUTOCAST_DTYPES, Precision, resolve_device
from visionattn.cli.errors import UsageError
from visionattn.cli.frozen import draw_weights, load_frozen
from visionattn.cli.images import check_number
from visionattn.cli.options import numbers, words
from visionattn.cli.probing_data import slug
from visionattn.cli.report import check_folder, check_writable
from visionattn.objects.probes import PROBES
from visionattn.probing.backbone import Backbone
from visionattn.suggestions import suggest
from visionattn.tasks.checkpoint import Weights, check_model_name, weights_origin
from visionattn.tasks.preprocessing import describe_preprocessing
from visionattn.viz.figure import check_suffix
from visionattn_kernels.provenance import provenance

DATA, TRAINING, INTERVENTIONS = BindingData(), ProbeTraining(), Interventions()
OF_PAIRS = ("quadratic", "quadratic_full", "diagonal", "linear")
"""Probes whose scores are logits, of which maps are drawn."""


def binding(
    model: str | None = None,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    control: Literal["random"] | None = None,
    layers: str = "all",
    probes: str = "quadratic,diagonal,linear,class,identity,cosine,dot",
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
    """Evaluate how well probes tell from two patches whether they lie on the same object, at each layer of backbones.

    All probes of all layers are trained at once, on a stream of features that are used and dropped; nothing but results
    is written. Nothing is selected on val but the layer that the table shows: all layers are in the files.

    Args:
        model: names of registered models, separated by commas.
        checkpoint: file that train.py wrote, of any task; with --model also a plain state dict or .safetensors file.
        pretrained: fetch the weights that are published for the models.
        model_kwargs: further arguments for each model, such as {"img_size": 64}.
        weights: of a checkpoint that holds a moving average, that average or the raw weights.
        control: random evaluates the same architectures with random weights, too.
        layers: all, or numbers of blocks (in hierarchical models, stages), counted from 0 or, if negative, from the
            last, separated by commas.
        probes: separated by commas: quadratic, quadratic_full, diagonal, linear, class, identity, cosine, dot.
        data: which scenes.
        training: how probes are trained.
        interventions: what is done to tokens.
        seeds: number of runs, with seeds from --training.seed on; random backbones are others in each of them.
        device: auto, cpu, cuda, cuda:1, …
        precision: of the backbone, as --trainer.precision; probes are trained in single precision.
        output: JSON file for the results.
        csv: CSV file for those of the probes.
        plot: image of accuracy against depth, .png, .pdf or .svg.
        overlays: folder for images of what the first probe says is the same object as a click, of the first seed.
        num_examples: number of scenes of val that are drawn there, evenly spaced.

    Raises:
        UsageError: options that contradict each other.
        ValueError: a model, checkpoint or data set that is not there or does not fit the others.
    """
    names: list[str | None] = [*words("model", model)] if model is not None else [None]
    if checkpoint is not None and len(names) > 1:
        raise UsageError(f"--checkpoint is of one model: give one --model or none, not {model}")
    if control and checkpoint is None and not pretrained:
        raise UsageError("--control random stands beside trained weights: give --pretrained or --checkpoint FILE")
    if seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {seeds}")
    for known in filter(None, names):
        check_model_name(known)
    wanted = _parse_probes(probes, interventions)
    if overlays and wanted[0] not in OF_PAIRS:
        raise UsageError(f"--overlays draws the first probe: name one of {', '.join(OF_PAIRS)} before {wanted[0]}")
    chosen = _parse_layers(layers)
    check_writable(plot, json=output, csv=csv)
    check_folder(overlays)
    check_number(num_examples)
    if plot:
        check_suffix(plot)
    resolved = resolve_device(device)
    options = {"data": asdict(data), "training": asdict(training), "intervention_options": asdict(interventions)}
    settings = {**options, "precision": precision, **provenance(resolved)}
    report = BindingReport(output, csv, plot, settings)

    def open_subject(name: str | None, randomized: bool, seed: int, announce: bool) -> BindingSubject:
        network, spec = load_frozen(checkpoint, name, pretrained, model_kwargs or {}, weights, seed)
        origin = {
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "weights": weights_origin(pretrained, model_kwargs, checkpoint, weights),
        }
        if randomized:
            network, origin = draw_weights(spec, seed), {"checkpoint": None, "weights": "random"}
        preprocessing = prepare_scenes(spec, data)
        if announce:
            print(describe_preprocessing(preprocessing, spec.preprocessing, str(checkpoint or spec.model)))
        backbone = Backbone(
            network.to(resolved),
            spec.model,
            chosen,
            spec.model_kwargs,
            preprocessing,
            AUTOCAST_DTYPES.get(precision),
            norm_blocks=False,
        )
        if interventions.layers is not None:
            Experiments.check(backbone, interventions, training.rank)
        return BindingSubject(backbone, origin, data, training, wanted, seed)

    for name in names[1:]:  # what is wrong with the last one should not show after hours with the others
        open_subject(name, randomized=False, seed=training.seed, announce=False)
    for name in names:
        for randomized in (False, True) if control else (False,):
            for seed in range(training.seed, training.seed + seeds):
                subject = open_subject(name, randomized, seed, announce=seed == training.seed and not randomized)
                subject.train()
                subject.evaluate()
                rows = subject.results()
                report.add(subject.describe(), rows)
                if interventions.layers is not None:
                    experiments = Experiments(subject, interventions)
                    report.add_experiments(experiments.segment(), experiments.correlate())
                if overlays and seed == training.seed:
                    stem = "-".join([slug(subject.backbone.name), *(["random"] if randomized else [])])
                    best = best_layer(rows, wanted[0])
                    save_overlays(overlays / f"{stem}.png", subject, wanted[0], best, num_examples)
    report.print()


def _parse_layers(text: str) -> list[int] | None:
    """Numbers of blocks, None for all."""
    if text.strip() == "all":
        return None
    if not re.fullmatch(r"\s*-?\d+\s*(,\s*-?\d+\s*)*", text):
        raise UsageError(f"--layers must be all, or numbers of blocks, as in 3,7,11; got {text!r}")
    return numbers("layers", text, int)


def _parse_probes(text: str, interventions: Interventions) -> list[str]:
    """Names of probes, those that interventions want behind the others.

    Raises:
        UsageError: a probe that there is not.
    """
    names = words("probes", text)
    for name in names:
        if name not in PROBES:
            hint = suggest(name, PROBES) or f"; there are {', '.join(PROBES)}"
            raise UsageError(f"--probes: no probe is named {name!r}{hint}")
    return list(dict.fromkeys([*names, *(WANTED if interventions.layers is not None else ())]))
