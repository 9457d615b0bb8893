"""Model card of an exported folder; missing facts are marked as not recorded."""

import json
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from visionattn.data.own_transform import KEY as OWN_TRANSFORM
from visionattn.export.network import Network
from visionattn.export.run import RunRecord
from visionattn.tasks import TASKS

NOT_RECORDED = "not recorded"
SHOWN_CLASSES = 1000
SCORES = {name: words for task in TASKS.values() for name, words in task.rates.items()}
"""Rates in words; other values are shown as plain numbers."""
EVALUATED = (("top1", "top5"), ("map", "f1"))
"""Figures of an evaluation that a card shows, of one label per image or of several."""


def write_card(
    network: Network,
    run: RunRecord,
    dtype: str,
    license: str | None,
    data_name: str | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of `README.md`: YAML for the hub, then a page.

    Args:
        network: What was exported.
        run: The training behind it.
        dtype: Data type of the weights.
        license: License of the weights; None if unknown.
        data_name: Name of the data set, if it was a folder of images.
        evaluation: Result of `eval.py classify` on other images.
    """
    parts = [
        f"---\n{_front_matter(network, run, license, data_name)}\n---",
        f"# {network.spec.model}",
        f"This is {TASKS[network.spec.task].card_text}.",
        _table(_facts(network, run, dtype, license, data_name)),
        "## Use",
        _usage(network),
        "## Results",
        _results(network, run),
        *([_evaluation(evaluation)] if evaluation else []),
        *(
            ["## Classes", _fence("json", json.dumps(network.class_names[:SHOWN_CLASSES], ensure_ascii=False))]
            * bool(network.class_names)
        ),
        "## Training",
        _training(network, run),
        "## Limits",
        _limits(network, run),
        "## Versions",
        _table({name: version or NOT_RECORDED for name, version in network.describe()["versions"].items()}),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(network: Network, run: RunRecord, license: str | None, data_name: str | None) -> str:
    spec = network.spec
    pipeline = "image-classification" if spec.num_classes else "image-feature-extraction"
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=spec.dataset,
            dataset_name=data_name or spec.dataset,
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=SCORES[name],
            metric_value=round(value, 6),
        )
        for name, value in _scores(network, run).items()
        if name in ("top1", "top5") and spec.dataset
    ]
    data = ModelCardData(
        license=license,
        library_name="timm",
        tags=["timm", "visionattn"],
        pipeline_tag=pipeline,
        datasets=[spec.dataset.removeprefix("hfds/")] if spec.dataset.startswith("hfds/") else None,
        model_name=spec.model if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).rstrip()


def _facts(network: Network, run: RunRecord, dtype: str, license: str | None, data_name: str | None) -> dict[str, str]:
    spec, preprocessing = network.spec, network.spec.preprocessing
    parameters = sum(parameter.numel() for parameter in network.module.parameters())
    names = {
        "average": "exponential moving average" if run.has_average else "as trained",
        "raw": "as trained, not the moving average" if run.has_average else "as trained",
        "pretrained": "those that are published for the model",
        "file": "from a file of weights",
        "random": "random: nothing was trained",
    }
    facts = {
        "Parameters": f"{parameters / 1e6:.2f} M",
        "Weights": f"{names[network.weights]}, {dtype}",
        "Input": " × ".join(map(str, network.input_size)) + " (channels, height, width)",
        "Output": f"{spec.num_classes} classes" if spec.num_classes else "features",
        "Trained on": data_name or (f"`{spec.dataset}`" if spec.dataset else NOT_RECORDED),
        "Mean, standard deviation": f"{_numbers(preprocessing['mean'])}; {_numbers(preprocessing['std'])}",
        "Resizing": f"{preprocessing['interpolation']}, crop_pct {preprocessing['crop_pct']:g} "
        f"({preprocessing['crop_mode']})",
        "License": license or "not stated",
    }
    if preprocessing.get("sequence"):
        height, width = preprocessing["input_size"][1:]
        order = (
            f", permuted by seed {preprocessing['permutation_seed']}" if preprocessing["sequence"] == "permuted" else ""
        )
        facts["Sequence"] = f"images of {height} × {width}, pixel by pixel{order}"
    return facts


def transformers_gap(network: Network) -> str:
    """Return why the image pipelines of transformers cannot use an exported folder; empty if they can."""
    preprocessing = network.spec.preprocessing
    if preprocessing.get("sequence"):
        return "its image processors do not read images as sequences of pixels"
    if network.input_size[0] != 3:
        return f"its pipelines read images of 3 channels, not {network.input_size[0]}"
    if preprocessing.get(OWN_TRANSFORM):
        return f"its image processors do not know the transform {preprocessing[OWN_TRANSFORM]}"
    return "" if network.spec.num_classes else "the model has no classes: AutoModel gives its features"


def _usage(network: Network) -> str:
    code = (
        "import timm\n"
        "import visionattn  # registers the model: pip install visionattn\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or hf-hub:OWNER/NAME\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
    )
    if gap := transformers_gap(network):
        return f"{_fence('python', code)}\n\nNot for pipelines of transformers: {gap}."
    pipeline = (
        "import visionattn\n"
        "from transformers import pipeline\n\n"
        'classify = pipeline("image-classification", model="FOLDER")  # or OWNER/NAME\n'
        'print(classify("image.jpg"))'
    )
    return f"{_fence('python', code)}\n\nWith transformers:\n\n{_fence('python', pipeline)}"


def _scores(network: Network, run: RunRecord) -> dict[str, float]:
    """Return the measured scores of these weights."""
    return {} if run.has_average and network.weights == "raw" else run.scores


def _results(network: Network, run: RunRecord) -> str:
    if not run.scores:
        return f"Accuracy: {NOT_RECORDED}."
    scores = _scores(network, run)
    if not scores:
        return "The run validated the moving average of its weights; of these, the accuracy is " + NOT_RECORDED + "."
    shown = {
        SCORES.get(name, name): f"{value:.2%}" if name in SCORES else f"{value:.4g}" for name, value in scores.items()
    }
    chosen = " Validation also chose these weights among all epochs', so that they look better there than elsewhere."
    return f"{_table(shown)}\n\nMeasured on the validation split during training.{chosen if run.is_best else ''}"


def evaluated(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the figures that a card shows of an evaluation."""
    return next((names for names in EVALUATED if names[0] in found), EVALUATED[0])


def _evaluation(found: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{SCORES[name]} {found[name]:.2%}" for name in evaluated(found))
    split = f"`{found['split']}`" if found["split"] else "those that training did not read"
    return f"Of these weights `eval.py classify` measured {scores} on {found['num_images']:,} images: {split}."


def _training(network: Network, run: RunRecord) -> str:
    took = f" The whole training took {run.took}." if run.took else ""
    lines = [f"Epochs: {run.epochs or NOT_RECORDED}; updates: {run.steps or NOT_RECORDED}.{took}"]
    if not run.recipe:
        return f"{lines[0]} Recipe: {NOT_RECORDED}."
    task = f" --task {network.spec.task}" if network.spec.task != "classification" else ""
    lines += [
        f"This, as `recipe.yaml`, is what `python train.py fit{task} --config recipe.yaml` was run with, up to places "
        "of files, such as `--data.root`:",
        _fence("yaml", yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True).rstrip()),
    ]
    return "\n\n".join(lines)


def _limits(network: Network, run: RunRecord) -> str:
    spec = network.spec
    lines = ["- It has seen no images but those of the data set named above." if spec.dataset else ""]
    if (run.recipe.get("model") or {}).get("pretrained") or (run.recipe.get("model") or {}).get("checkpoint_path"):
        lines[0] = "- Training started from other weights, whose data and license also count."
    if spec.multi_label:
        lines.append(
            f"- It gives a logit for each of its {spec.num_classes} classes; a sigmoid makes probabilities of them."
        )
    elif spec.num_classes:
        lines.append(f"- It answers with one of its {spec.num_classes} classes, whatever is in the image.")
    lines.append("- How it does on other data, on altered images or for groups of people has not been measured.")
    return "\n".join(filter(None, lines))


def _table(values: dict[str, str]) -> str:
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _fence(language: str, text: str) -> str:
    """Return a block of code whose fence is longer than any run of backticks in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
