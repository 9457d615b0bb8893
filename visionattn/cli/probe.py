"""``eval.py probe``: accuracy of heads on the features of frozen backbones."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from visionattn.checks import check_range
from visionattn.cli.errors import UsageError
from visionattn.cli.progress import show_progress
from visionattn.cli.report import print_table
from visionattn.errors import UserError
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.drawing import spread
from visionattn.evaluation.source import LoadedModel, ModelSource
from visionattn.output import check_folder, check_writable, write_csv, write_json
from visionattn.probing.options import FeatureOptions, HeadTraining, ProbingData
from visionattn.probing.requests import request_heads
from visionattn.probing.results import ProbingResult, csv_row, sort_rows, table, title
from visionattn.probing.session import ProbingSession
from visionattn.training import Weights, check_model_name
from visionattn.training.preprocessing import describe_preprocessing
from visionattn.viz.attention_maps import save_attention_maps
from visionattn_kernels.provenance import provenance

DATA, FEATURES, TRAINING = ProbingData(), FeatureOptions(), HeadTraining()


def probe(
    model: list[str] | None = None,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    heads: list[str] = ["linear", "knn", "ep_32"],  # noqa: B006  is never changed
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
) -> None:
    """Evaluate top-1 and top-5 accuracy of heads on the features of frozen backbones.

    Features are computed once and cached; all heads and learning rates are trained together. A run that was killed
    resumes when it is started again.

    Args:
        model: names of registered models.
        checkpoint: file of train.py (any task) or heads; with --model also a plain state dict or .safetensors file.
        pretrained: fetch the weights that are published for the models.
        model_kwargs: further arguments for each model, such as {"img_size": 64}.
        weights: for a checkpoint that holds a moving average: the average or the raw weights.
        heads: ep_32 and any other ep_M, linear, cls, gap, aim, abmilp, …; knn, ridge, logistic.
        head_options: options of heads by their names, such as {"ep_32": {"d_out": 2}, "aim": {"tokens": "all"}}.
        data: which images.
        features: which features, and where they are cached.
        training: how heads are trained.
        device: auto, cpu, cuda, cuda:1, …
        precision: precision of the backbone, as --trainer.precision; heads are trained in single precision.
        output: JSON file for the results.
        csv: CSV file for the results.
        attention: folder for images of the heads' attention; colours mean the same in all images of a sheet.
        num_examples: number of images of val that are drawn there, evenly spaced.
        export: folder for the heads, of which visionattn.load_probe makes classifiers.
    """
    if checkpoint is not None and len(model or ()) > 1:
        raise UsageError(f"--checkpoint is of one model: give one --model or none, not {','.join(model or ())}")
    for name in model or ():
        check_model_name(name)
    named: Sequence[str | None] = model or [None]
    sources = [ModelSource(checkpoint, name, pretrained, model_kwargs, weights) for name in named]
    try:
        requests = request_heads(heads, head_options)
    except UserError as error:
        raise UsageError(str(error)) from error
    if training.shots and (attention or export):
        raise UsageError("--attention and --export want heads that learn from all images: leave out --training.shots")
    check_writable(json=output, csv=csv)
    check_folder(attention, export, features.cache)
    check_range("num_examples", num_examples, 1, error=UsageError)
    resolved = resolve_device(device)
    options = {"data": asdict(data), "features": asdict(features), "training": asdict(training)}
    options["features"]["cache"] = str(features.cache)
    settings = {**options, "precision": precision, **provenance(resolved)}
    order = [request.name for request in requests]
    models: list[dict[str, Any]] = []
    rows: list[Mapping[str, Any]] = []

    def open_session(loaded: LoadedModel) -> ProbingSession:
        options: dict[str, Any] = {"device": resolved, "precision": precision, "progress": show_progress}
        return ProbingSession(loaded, data, features, training, **options)

    def save(result: ProbingResult) -> None:
        rows[:] = sort_rows([*rows, result.to_dict()], order)
        if output:
            write_json({"results": rows, "models": models, **settings}, output)
        if csv:
            write_csv([csv_row(row) for row in rows], csv)

    for source in sources[1:]:  # errors of the last model should not come after hours with the others
        open_session(source.load_frozen()).plan(requests, attention=attention is not None)
    for source in sources:
        loaded = source.load_frozen()
        session = open_session(loaded)
        print(describe_preprocessing(session.backbone.preprocessing, loaded.spec.preprocessing, loaded.name))
        plan = session.plan(requests, attention=attention is not None)
        session.extract(plan)
        models.append(session.describe())
        for result in session.results(plan):
            save(result)
            if export and result.head:
                session.export(result, export)
            if attention and result.head and result.head.has_attention:
                maps = session.attention_maps(result, spread(session.num_val, num_examples))
                save_attention_maps(*maps, attention / f"{session.file_stem(result)}.png")
    _print(rows, models)


def _print(rows: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> None:
    print_table(table(rows), title=title(rows, models))
    if fixed := dict.fromkeys(row["head"] for row in rows if row["selected_on"] == "fixed"):
        print(f"{', '.join(fixed)} with one image per class: fixed, not chosen, as none can be held out")
    for model in models:
        if model["num_unreadable"]:
            print(f"unreadable images left out: {model['num_unreadable']}, the first: {model['unreadable'][0]}")
