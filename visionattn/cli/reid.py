"""``eval.py reid``: retrieval of people or vehicles."""

from pathlib import Path
from typing import Any

from visionattn.checks import check_range
from visionattn.cli.errors import UsageError
from visionattn.cli.progress import show_progress
from visionattn.cli.report import print_table, print_unreadable
from visionattn.evaluation.as_trained import IdentityOptions
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.drawing import require_rollout, save_ranked_lists, save_rollouts
from visionattn.evaluation.retrieval import AS_TRAINED, RetrievalResult, evaluate_reid, require_ranking
from visionattn.evaluation.source import ModelSource
from visionattn.output import check_folder, check_writable, write_json
from visionattn.training import Weights
from visionattn.training.branches import Inference
from visionattn_kernels.provenance import provenance


def reid(
    checkpoint: Path | None = None,
    model: str | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    data: IdentityOptions = AS_TRAINED,
    inference: Inference | None = None,
    flip: bool = False,
    rerank: bool = False,
    device: str = "auto",
    precision: Precision = "32-true",
    output: Path | None = None,
    ranked_lists: Path | None = None,
    rollout: Path | None = None,
    num_examples: int = 20,
) -> None:
    """Evaluate mAP, mINP and CMC of a checkpoint or a registered model on a data set for re-identification.

    A checkpoint of train.py --task reid knows its model, its preprocessing and its data set.

    Args:
        checkpoint: file that train.py wrote; together with --model also a plain state dict or .safetensors file.
        model: name of a registered model.
        pretrained: fetch the weights that are published for the model.
        model_kwargs: further arguments for the model, such as {"img_size": [256, 128]}.
        weights: for a checkpoint that holds a moving average: the average or the raw weights.
        data: which images.
        inference: for DCAL models, use the features of both branches (combined) or of self-attention only (sa).
        flip: add the features of the mirrored images.
        rerank: re-rank with k-reciprocal neighbours; results without re-ranking are reported also.
        device: auto, cpu, cuda, cuda:1, …
        precision: as --trainer.precision.
        output: JSON file for the results.
        ranked_lists: folder for images of queries with the first ranks of the gallery, right ones framed green,
            wrong ones red.
        rollout: folder for images of the attention of DCAL models on queries, and of the patches that they select.
        num_examples: number of queries that are drawn, evenly spaced.
    """
    check_writable(json=output)
    check_folder(ranked_lists, rollout)
    check_range("num_examples", num_examples, 1, error=UsageError)
    resolved = resolve_device(device)
    loaded = ModelSource(checkpoint, model, pretrained, model_kwargs, weights).load("evaluate")
    if rollout:
        require_rollout(loaded.model, loaded.spec.model)
    if ranked_lists:
        require_ranking(loaded.spec, data)
    result = evaluate_reid(
        loaded,
        data,
        inference=inference,
        flip=flip,
        rerank=rerank,
        device=resolved,
        precision=precision,
        progress=show_progress,
        announce=print,
    )
    if output:
        write_json({**result.to_dict(), **provenance(resolved)}, output)
    if ranked_lists:
        save_ranked_lists(ranked_lists, result, num_examples)
    if rollout:
        save_rollouts(rollout, loaded.model, result.data, result.num_query, num_examples)
    _print(result)


def _print(result: RetrievalResult) -> None:
    kinds = {"re-ranked": result.measures} if result.reranked else {}
    rows = [
        {
            "model": result.model,
            "data set": result.dataset,
            **({"distances": name} if kinds else {}),
            "queries": f"{measures['num_valid_queries']:,}",
            "mAP": f"{measures['mAP']:.2%}",
            "mINP": f"{measures['mINP']:.2%}",
            **{f"rank-{k}": f"{measures['cmc'][k - 1]:.2%}" for k in (1, 5, 10)},
        }
        for name, measures in {"as ranked": result.before_reranking or result.measures, **kinds}.items()
    ]
    print_table(rows)
    if result.measures["num_skipped_queries"]:
        print(f"queries without a match left out: {result.measures['num_skipped_queries']}")
    print_unreadable(result, "images")
