"""How well heads classify by the features of frozen backbones."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from visionattn.cli.device import AUTOCAST_DTYPES, Precision, resolve_device
from visionattn.cli.errors import UsageError
from visionattn.cli.frozen import load_frozen
from visionattn.cli.images import check_number
from visionattn.cli.leaderboard import leaderboard as show_leaderboard
from visionattn.cli.options import words
from visionattn.cli.probing_data import FeatureOptions, ProbingData, prepare, slug
from visionattn.cli.probing_report import Report, save_attention
from visionattn.cli.probing_run import FITTED, HeadTraining, Subject
from visionattn.cli.report import check_folder, check_writable
from visionattn.probing.backbone import Backbone, Layer
from visionattn.probing.export import export_probe
from visionattn.probing.heads import list_heads
from visionattn.suggestions import suggest
from visionattn.tasks.checkpoint import Weights, check_model_name, weights_origin
from visionattn.tasks.preprocessing import describe_preprocessing
from visionattn_kernels.provenance import provenance

DATA, FEATURES, TRAINING = ProbingData(), FeatureOptions(), HeadTraining()


def probe(
    model: str | None = None,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    heads: str = "linear,knn,ep_32",
    head_options: dict[str, dict[str, Any]] | None = None,
    data: ProbingData = DATA,
    features: FeatureOptions = FEATURES,
    training: HeadTraining = TRAINING,
    device: str = "auto",
    precision: Precision = "32-true",
    output: Path | None = None,
    csv: Path | None = None,
    attention: Path | None = None,
    num_examples: int = 12,
    export: Path | None = None,
    leaderboard: list[Path] | None = None,
) -> None:
    """Evaluate top-1 and top-5 accuracy of heads on the features of frozen backbones.

    Features are computed once and cached; heads and learning rates are trained together. A run that was killed goes on
    where it was when it is run again.

    Args:
        model: names of registered models, separated by commas.
        checkpoint: file that train.py wrote, of any task; with --model also a plain state dict or .safetensors file.
        pretrained: fetch the weights that are published for the models.
        model_kwargs: further arguments for each model, such as {"img_size": 64}.
        weights: of a checkpoint that holds a moving average, that average or the raw weights.
        heads: separated by commas: ep_32 and any other ep_M, linear, cls, gap, aim, abmilp, …; knn, ridge, logistic.
        head_options: of heads by their names, such as {"ep_32": {"d_out": 2}, "aim": {"tokens": "all"}}.
        data: which images.
        features: which features, and where they are kept.
        training: how heads are trained.
        device: auto, cpu, cuda, cuda:1, …
        precision: of the backbone, as --trainer.precision; heads are trained in single precision.
        output: JSON file for the results; with --leaderboard the Markdown file, beside which lies its image, .png.
        csv: CSV file for the results.
        attention: folder for images of what heads attend, in colours that mean the same in all images of a sheet.
        num_examples: number of images of val that are drawn there, evenly spaced.
        export: folder for the heads, of which visionattn.load_probe makes classifiers.
        leaderboard: the same as the command leaderboard --results, in place of probing.

    Raises:
        UsageError: options that contradict each other.
        ValueError: a model, checkpoint, data set or head that is not there or does not fit the others.
    """
    if leaderboard is not None:
        show_leaderboard(leaderboard, output)
        return
    names: list[str | None] = [*words("model", model)] if model is not None else [None]
    if checkpoint is not None and len(names) > 1:
        raise UsageError(f"--checkpoint is of one model: give one --model or none, not {model}")
    for known in filter(None, names):
        check_model_name(known)
    wanted = _parse_heads(heads, head_options or {})
    layers, shots = features.parse_layers(), training.parse_shots()
    if shots and (attention or export):
        raise UsageError("--attention and --export want heads that learn from all images: leave out --training.shots")
    check_writable(json=output, csv=csv)
    check_folder(attention, export, features.cache)
    check_number(num_examples)
    resolved = resolve_device(device)
    settings = {"data": asdict(data), "features": asdict(features), "training": asdict(training)}
    settings["features"]["cache"] = str(features.cache)
    report = Report(output, csv, list(wanted), {**settings, "precision": precision, **provenance(resolved)})
    origin = {
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "weights": weights_origin(pretrained, model_kwargs, checkpoint, weights),
    }

    def open_subject(name: str | None, announce: bool) -> Subject:
        network, spec = load_frozen(checkpoint, name, pretrained, model_kwargs or {}, weights)
        preprocessing, dtype = prepare(spec, data), AUTOCAST_DTYPES.get(precision)
        if announce:
            print(describe_preprocessing(preprocessing, spec.preprocessing, str(checkpoint or spec.model)))
        backbone = Backbone(network.to(resolved), spec.model, layers, spec.model_kwargs, preprocessing, dtype)
        subject = Subject(backbone, spec, origin, data, features, training, resolved)
        subject.check(wanted, attention is not None)
        return subject

    for name in names[1:]:  # what is wrong with the last one should not show after hours with the others
        open_subject(name, announce=False)
    for name in names:
        subject = open_subject(name, announce=True)
        backbone = subject.backbone
        subject.extract(wanted, attention is not None)
        report.add_model(subject.describe())
        for group in subject.groups:
            for count in shots:
                report.add(subject.about(group), subject.few_shot(wanted, group, count))
            for found in () if shots else subject.probe(wanted, group):
                report.add(subject.about(group), [found.result])
                stem = _stem(backbone.name, group, found.result.name)
                if export and found.head:
                    published = origin["weights"] == "pretrained"
                    export_probe(export, stem, found, backbone, group, subject.class_names, published=published)
                if attention and found.head and found.head.has_attention:
                    save_attention(attention / f"{stem}.png", found.head, subject, group, num_examples)
    report.print()


def _stem(model: str, layers: Sequence[Layer], head: str) -> str:
    """What files of a head are called, without their suffixes."""
    place = [] if list(layers) == ["last"] else ["layers" if len(layers) > 1 else "layer", "+".join(map(str, layers))]
    return "-".join([slug(model), *place, head])


def _parse_heads(heads: str, options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Options of the heads that are named, in their order.

    Raises:
        UsageError: a head that there is not, or options of one that is not named.
    """
    names = words("heads", heads)
    known = [*list_heads(), *FITTED]
    for name in names:
        if name not in known and not re.fullmatch(r"ep_\d+", name):
            hint = suggest(name, known) or f"; there are {', '.join(known)} and every ep_M"
            raise UsageError(f"--heads: no head is named {name!r}{hint}")
    for name in options:
        if name not in names or name in FITTED:
            takes = [name for name in names if name not in FITTED]
            raise UsageError(f"--head_options.{name} is of no head that takes options: {', '.join(takes) or 'none'}")
    return {name: dict(options.get(name, {})) for name in names}
